"""Reading and replacing states works on tensors and tuples, and no hook outlives its block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import hooks
from retcon.testing import tiny_model

IDS = torch.arange(5, 14)[None]


class Pair(nn.Module):
    """Returns a tuple, as some decoder blocks do."""

    def forward(self, hidden_states: Tensor, extra: int = 7) -> tuple[Tensor, int]:
        return 2 * hidden_states, extra


class Single(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * hidden_states


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hidden_and_replace_keep_the_kind() -> None:
    states, other = torch.ones(2), torch.zeros(2)
    assert hooks.hidden(states) is states
    assert hooks.hidden((states, "cache", None)) is states
    assert hooks.replace(states, other) is other
    assert hooks.replace((states, "cache", None), other) == (other, "cache", None)


@pytest.mark.parametrize("output", [None, ("cache", 1), {"x": 1}])
def test_hidden_says_what_it_got(output: Any) -> None:
    with pytest.raises(TypeError, match=type(output).__name__):
        hooks.hidden(output)


@pytest.mark.parametrize("module", [Pair(), Single()])
def test_record_reads_inputs_and_outputs(module: nn.Module) -> None:
    x = torch.ones(3)
    with hooks.record({"m": module}, "input") as inputs, hooks.record({"m": module}, "output") as outputs:
        module(x)
        assert torch.equal(inputs["m"], x)
        assert torch.equal(outputs["m"], 2 * x)
        module(hidden_states=3 * x)  # by keyword, and the latest counts
    assert torch.equal(inputs["m"], 3 * x)
    assert torch.equal(outputs["m"], 6 * x)
    assert hook_count(module) == 0


def test_record_without_states_says_so() -> None:
    class Empty(nn.Module):
        def forward(self) -> None: ...

    module = Empty()
    with pytest.raises(TypeError, match="without hidden states"), hooks.record({"m": module}):
        module()
    assert hook_count(module) == 0


@pytest.mark.parametrize("what", ["input", "output"])
@pytest.mark.parametrize("family", ["llama", "gptj"])
@torch.no_grad()
def test_stop_after_runs_no_further(family: str, what: Any) -> None:
    model: Any = tiny_model(family)
    blocks = model.model.layers if family == "llama" else model.transformer.h
    paths = {str(i): block for i, block in enumerate(blocks)}
    with hooks.record(paths, what) as whole:
        model(IDS)
    with hooks.stoppable(), hooks.record(paths, what, stop_after="1") as part:
        model(IDS)
        part["not stopped"] = torch.ones(0)
    assert list(part) == ["0", "1"]
    assert all(torch.equal(part[name], whole[name]) for name in part)
    assert hook_count(model) == 0


@pytest.mark.parametrize("module", [Pair(), Single()])
def test_rewritten_changes_only_the_states(module: nn.Module) -> None:
    x = torch.ones(3)
    with hooks.rewritten(module, lambda h: h + 1):
        output = module(x)
    assert torch.equal(hooks.hidden(output), 2 * x + 1)
    assert output[1:] == (7,) if isinstance(output, tuple) else isinstance(output, Tensor)
    assert torch.equal(hooks.hidden(module(x)), 2 * x)
    assert hook_count(module) == 0


def test_first_acts_before_the_hooks_there() -> None:
    module, x = Single(), torch.ones(3)
    with hooks.record({"m": module}, "output") as seen:
        with hooks.rewritten(module, lambda h: h + 1):
            module(x)
        assert torch.equal(seen["m"], 2 * x)
        with hooks.rewritten(module, lambda h: h + 1, first=True):
            module(x)
        assert torch.equal(seen["m"], 2 * x + 1)


@pytest.mark.parametrize("module", [Pair(), Single()])
def test_rewritten_input(module: nn.Module) -> None:
    x = torch.ones(3)
    with hooks.rewritten_input(module, lambda h: h + 1):
        assert torch.equal(hooks.hidden(module(x)), 2 * (x + 1))
        assert torch.equal(hooks.hidden(module(hidden_states=x)), 2 * (x + 1))
    assert torch.equal(hooks.hidden(module(x)), 2 * x)
    assert hook_count(module) == 0


def test_bypassed_puts_back_what_stood_there() -> None:
    module, x = Single(), torch.ones(3)
    with hooks.bypassed(module, lambda h: h - 1):
        assert torch.equal(module(x), x - 1)
        with hooks.bypassed(module, lambda h: h - 2):
            assert torch.equal(module(x), x - 2)
        assert torch.equal(module(x), x - 1)
    assert "forward" not in module.__dict__
    assert torch.equal(module(x), 2 * x)


def test_nothing_stays_after_an_error() -> None:
    model: Any = tiny_model("gptj", layers=2)
    block = model.transformer.h[0]

    def fail(_states: Tensor) -> Tensor:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"), hooks.record({"b": block}), hooks.rewritten(block, fail):
        model(IDS)
    with pytest.raises(ValueError, match="on purpose"), hooks.rewritten_input(block, fail):
        model(IDS)
    with pytest.raises(ValueError, match="on purpose"), hooks.bypassed(block, fail):
        block(torch.ones(1))
    assert hook_count(model) == 0
    assert "forward" not in block.__dict__
