"""Norms of gradients against plain autograd, and what taking them leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import hooks, progress
from retcon import patch as patches
from retcon.evaluate import gradients
from retcon.evaluate.gradients import NoGradient, gradient_scores
from retcon.lm import LM
from retcon.patch import Codebook, Entry, ForwardRecord, Gated, LowRank, Patch, describe_base
from retcon.patch.asking import Embedder
from retcon.patch.context import Context, Question
from retcon.patch.gated import Memory
from retcon.testing import tiny_model, tiny_tokenizer

F64 = torch.float64
PAIRS = [((1, 20, 21, 22), (5, 9, 2)), ((1, 30, 31), (6,)), ((1, 40), (7, 8, 9, 10))]

TinyLM = Callable[..., LM]
Traces = Callable[[nn.Module], Any]


def made(dtype: torch.dtype = torch.float32, **options: Any) -> LM:
    """A model of the test's own."""
    return LM.wrap(tiny_model("llama", layers=2, dtype=dtype, **options), tiny_tokenizer())


def norms(model: nn.Module, prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """The definition: mean -log p of the continuation, its gradient by autograd, a norm a parameter."""
    logits: Tensor = model(torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    loss = -torch.stack([row[token] for row, token in zip(rows, continuation, strict=True)]).mean()
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    return [float(slope.square().sum().sqrt()) for slope in slopes]


def average(model: nn.Module, prompt: Sequence[int], continuation: Sequence[int]) -> float:
    found = norms(model, prompt, continuation)
    return sum(found) / len(found)


def patched(lm: LM, path: str, entry: Entry) -> Patch:
    return Patch({path: entry}, describe_base(lm.model, [path], name="tiny"))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_scores_are_those_of_plain_autograd(tiny_lm: TinyLM, family: str) -> None:
    lm = tiny_lm(family, dtype=F64)
    expected = [average(deepcopy(lm.model), *pair) for pair in PAIRS]
    assert gradient_scores(lm, PAIRS) == pytest.approx(expected, rel=1e-9)


def test_tied_weights_count_once() -> None:
    lm = made(F64, tie=True)
    assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    expected = [average(deepcopy(lm.model), *pair) for pair in PAIRS]
    assert gradient_scores(lm, PAIRS) == pytest.approx(expected, rel=1e-9)


def test_a_change_of_a_weight_acts_as_if_it_were_in_the_weight(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama", dtype=F64)
    path = lm.arch.mlp_out[1]
    written, read = draw(64, 2), draw(112, 2, seed=1) * 0.2
    change = patched(lm, path, LowRank(written, read))
    whole: Any = deepcopy(lm.model)
    with torch.no_grad():
        whole.get_submodule(path).weight += written.double() @ read.double().T
    expected = [average(whole, *pair) for pair in PAIRS]
    with change.on(lm.model):
        assert gradient_scores(lm, PAIRS) == pytest.approx(expected, rel=1e-9)
    assert gradient_scores(lm, PAIRS) != pytest.approx(expected, rel=1e-3)


def memories(lm: LM) -> dict[str, Patch]:
    """Entries that look at the prompt and act on all of these."""
    path = lm.arch.mlp_out[1]
    mask = draw(64, 112) > 0
    gated = Gated.made([Memory(mask, 0.3 * draw(64, 112) * mask, 0.0, ("a",), "shard")], (64, 112))
    book = {"labels": [(5,)], "queries": torch.zeros(1, 112), "owners": [0], "names": ["a"]}
    codebook = Codebook.made(torch.zeros(1, 112), draw(1, 64), [1e6], **book)  # type: ignore[arg-type]
    embed = Embedder(lm.model, hooked=False)
    prompts, texts = [list(prompt[1:]) for prompt, _ in PAIRS], [[(50, 51, 52)]] * len(PAIRS)
    counts = Counter(token for prompt in prompts for token in prompt)
    names = [str(number) for number in range(len(prompts))]
    rest: dict[str, Any] = {"vocabulary": 512, "documents": 3, "threshold": -1.0}
    context = Context.made(prompts, texts, names, counts, torch.zeros(64), embed, **rest)
    asking = replace(context, question=Question((90,), (91,), 5, 6, -1e9))
    return {
        "gated": patched(lm, path, gated),
        "codebook": patched(lm, path, codebook),
        "context": Patch({"": context}, describe_base(lm.model, [""], name="tiny")),
        "asking": Patch(
            {"": asking, path: LowRank(draw(64, 1), draw(112, 1))}, describe_base(lm.model, ["", path], name="tiny")
        ),
    }


@pytest.mark.parametrize("kind", ["gated", "codebook", "context", "asking"])
def test_memories_decide_by_the_prompt_and_let_the_gradient_through(kind: str, traces: Traces) -> None:
    lm = made(F64)
    change = memories(lm)[kind]
    before, bare = traces(lm.model), gradient_scores(lm, PAIRS)
    with change.on(lm.model):
        found = gradient_scores(lm, PAIRS)
        expected = []
        for prompt, continuation in PAIRS:
            with patches.prompts(lm.model, len(prompt) - 1):
                expected.append(average(lm.model, prompt, continuation))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(bare, rel=1e-3)
    assert traces(lm.model) == before


def test_only_floating_weights_count_and_one_without_effect_is_zero() -> None:
    lm = made()
    plain, n = gradient_scores(lm, PAIRS), len(list(lm.model.parameters()))
    lm.model.register_parameter("packed", nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    assert gradient_scores(lm, PAIRS) == pytest.approx(plain, rel=1e-6)
    lm.model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    assert gradient_scores(lm, PAIRS) == pytest.approx([value * n / (n + 1) for value in plain], rel=1e-6)


@pytest.mark.parametrize("around", [nullcontext, torch.no_grad, torch.inference_mode])
def test_no_gradient_flag_or_hook_is_left_behind(around: Callable[[], Any], traces: Traces) -> None:
    lm = made()
    first, second, *_ = lm.model.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    lm.model.train()
    before = traces(lm.model)
    with around():
        found = gradient_scores(lm, PAIRS)
        assert gradient_scores(lm, PAIRS[1:2]) == pytest.approx(found[1:2], rel=1e-5)
    assert traces(lm.model) == before
    assert torch.equal(second.grad, torch.ones_like(second))
    assert all(weight.grad is None for weight in lm.model.parameters() if weight is not second)
    assert gradient_scores(lm, []) == []


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_is_near(dtype: torch.dtype, error: float) -> None:
    fine = made()
    for weight in fine.model.parameters():
        weight.data = weight.data.to(dtype).float()
    assert gradient_scores(made(dtype), PAIRS) == pytest.approx(gradient_scores(fine, PAIRS), rel=error)


def test_a_loss_scaled_beyond_the_precision_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = made()
    plain = gradient_scores(lm, PAIRS)
    monkeypatch.setattr(gradients, "loss_scale", lambda _lm: 1e38)
    assert gradient_scores(lm, PAIRS) == pytest.approx(plain, rel=1e-6)
    with torch.no_grad():
        lm.module(lm.arch.mlp_out[0]).weight.fill_(torch.inf)  # type: ignore[operator]
    (found,) = gradient_scores(lm, PAIRS[:1])
    assert found != found


class Shut(LowRank):
    """A change that no gradient comes back through."""

    def apply(self, x: Tensor, y: Tensor, record: ForwardRecord | None = None) -> Tensor:
        """The change, without how it came about."""
        return LowRank.apply(self, x, y, record).detach()

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Shut:
        """Itself."""
        return self


class OneWay(torch.autograd.Function):
    """The states as they are, without a derivative."""

    @staticmethod
    def forward(_context: Any, states: Tensor) -> Tensor:
        """The states."""
        return states.clone()


def test_what_lets_no_gradient_through_is_told(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = made()
    before, path = traces(lm.model), lm.arch.mlp_out[1]
    shut = patched(lm, path, Shut(draw(64, 1), draw(112, 1, seed=1)))
    with shut.on(lm.model), pytest.raises(NoGradient, match=f"the low_rank at {path} lets no gradient through"):
        gradient_scores(lm, PAIRS)
    with (
        hooks.rewritten(lm.module(path), OneWay.apply),
        pytest.raises(NoGradient, match=r"no gradient of an answer can be taken here \(You must implement .*\); leave"),
    ):
        gradient_scores(lm, PAIRS)
    assert traces(lm.model) == before
    monkeypatch.setattr(lm.model, "parameters", lambda: iter([torch.ones(1, dtype=torch.int8)]))
    with pytest.raises(NoGradient, match="no weight of this model is a floating-point number"):
        gradient_scores(lm, PAIRS)


def test_progress_is_told_pair_by_pair() -> None:
    told: list[Any] = []

    class Bar:
        def __enter__(self) -> Callable[[float], None]:
            return told.append

        def __exit__(self, *_error: object) -> None:
            return None

    def listener(name: str, total: float) -> Any:
        told.append((name, total))
        return Bar()

    with progress.listen(listener):
        gradient_scores(made(), PAIRS)
    assert told == [("gradients", 3), 1, 1, 1]
