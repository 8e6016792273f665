"""On and off: the hooks do what the weights would, and go without a trace."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import PatchError
from retcon.patch import LowRank, Patch, active, describe_base, suspended
from retcon.testing import tiny_model

Make = Callable[..., Patch]
Logits = Callable[[nn.Module], Tensor]
Weights = Callable[[nn.Module], dict[str, Tensor]]
Count = Callable[[nn.Module], int]


def by_hand(model: PreTrainedModel, patch: Patch) -> None:
    """Add a patch to the weights without the code under test."""
    for path, entry in patch.entries.items():
        weight: Any = model.get_submodule(path).weight.data
        weight += entry.delta().T if "c_proj" in path else entry.delta()


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("dense", [False, True])
def test_on_acts_as_the_changed_weights_and_off_restores_exactly(
    model: PreTrainedModel,
    make: Make,
    logits: Logits,
    weights: Weights,
    hooks_of: Count,
    dense: bool,
) -> None:
    patch, clean, before = make(model, 1, dense=dense), logits(model), weights(model)
    with patch.on(model) as edited:
        assert edited is model
        inside = logits(model)
        assert same(model, before)
    assert hooks_of(model) == 0
    assert torch.equal(logits(model), clean)
    by_hand(model, patch)
    torch.testing.assert_close(inside, logits(model), atol=1e-4, rtol=1e-4)
    assert (inside - clean).abs().max() > 1e-2


def test_a_suspended_patch_is_as_if_it_were_off(llama: PreTrainedModel, make: Make, logits: Logits) -> None:
    first, clean = make(llama, 1), logits(llama)
    with first.on(llama):
        inside = logits(llama)
        second = make(llama, 2)
        with second.on(llama):
            both = logits(llama)
            with suspended(llama, second):
                with suspended(llama, second):
                    assert active(llama) == (first,)
                assert active(llama) == (first,)
                assert torch.equal(logits(llama), inside)
            with pytest.raises(ZeroDivisionError), suspended(llama, second):
                raise ZeroDivisionError
            assert active(llama) == (first, second)
            assert torch.equal(logits(llama), both)
        with suspended(llama, first):
            assert torch.equal(logits(llama), clean)
        with suspended(llama, second):  # which is not on
            assert torch.equal(logits(llama), inside)


def test_an_error_inside_leaves_no_hook(llama: PreTrainedModel, make: Make, hooks_of: Count) -> None:
    with pytest.raises(ZeroDivisionError), make(llama).on(llama):
        raise ZeroDivisionError
    assert hooks_of(llama) == 0
    assert active(llama) == ()


def test_an_error_while_attaching_leaves_no_hook(
    llama: PreTrainedModel, make: Make, hooks_of: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = make(llama)
    last = llama.get_submodule(list(patch.entries)[-1])

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(last, "register_forward_hook", fails)
    with pytest.raises(KeyboardInterrupt):
        patch.attach(llama)
    assert hooks_of(llama) == 0
    assert active(llama) == ()


def test_twice_on_is_refused(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama)
    with (
        patch.on(llama),
        pytest.raises(PatchError, match=f"patch {patch.id} is already on this model"),
        patch.on(llama),
    ):
        pass
    assert active(llama) == ()


def test_a_patch_that_contains_the_one_that_is_on_is_refused(llama: PreTrainedModel, make: Make) -> None:
    a, b = make(llama, 1), make(llama, 2)
    with a.on(llama), pytest.raises(PatchError, match="contains patch"):
        (a + b).attach(llama)
    with (a + b).on(llama), pytest.raises(PatchError, match="already on this model"):
        a.attach(llama)


def test_two_patches_on_act_as_their_sum(llama: PreTrainedModel, make: Make, logits: Logits) -> None:
    a, b = make(llama, 1), make(llama, 2, dense=True)
    with a.on(llama), b.on(llama):
        stacked = logits(llama)
    with (a + b).on(llama):
        torch.testing.assert_close(stacked, logits(llama), atol=1e-4, rtol=1e-4)


def test_a_child_needs_its_parent_on(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1)
    child = make(llama, 2, parent=a.id)
    with pytest.raises(PatchError, match=f"on top of patch {a.id}; apply that one first"):
        child.attach(llama)
    with a.on(llama), child.on(llama):
        assert active(llama) == (a, child)
    a.merge(llama)
    with child.on(llama):
        assert active(llama) == (a, child)
    a.unmerge(llama)


def test_attach_and_detach_by_hand(llama: PreTrainedModel, make: Make, logits: Logits) -> None:
    a, clean = make(llama, 1), logits(llama)
    child = make(llama, 2, parent=a.id)
    first, second = a.attach(llama), child.attach(llama)
    with pytest.raises(PatchError, match=f"take {child.id} off first"):
        first.detach()
    second.detach()
    second.detach()
    a.detach(llama)
    assert torch.equal(logits(llama), clean)
    with pytest.raises(PatchError, match="is not on this model"):
        a.detach(llama)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_on_works_in_the_dtype_of_the_model(dtype: torch.dtype, make: Make, logits: Logits) -> None:
    model = tiny_model("llama", layers=3, dtype=dtype)
    patch, clean = make(model, 1), logits(model)
    with patch.on(model):
        inside = logits(model)
    assert inside.dtype == dtype
    assert not torch.equal(inside, clean)
    assert torch.equal(logits(model), clean)


def test_gradients_flow_after_a_first_call_in_inference_mode(llama: PreTrainedModel, make: Make) -> None:
    x = torch.randn(1, 4, 64)
    with make(llama).on(llama):
        with torch.inference_mode():
            llama(inputs_embeds=x)
        x.requires_grad_()
        llama(inputs_embeds=x).logits.sum().backward()
    assert x.grad is not None


def test_generation_with_a_cache_sees_the_patch(llama: Any, make: Make) -> None:
    patch, ids = make(llama, 1, size=0.3), torch.tensor([[5, 6, 7]])
    ones = torch.ones_like(ids)
    options = {"attention_mask": ones, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with patch.on(llama):
        hooked = llama.generate(ids, **options)
    patch.merge(llama)
    merged = llama.generate(ids, **options)
    patch.unmerge(llama)
    assert torch.equal(hooked, merged)
    assert not torch.equal(hooked, llama.generate(ids, **options))


def test_models_are_told_apart(make: Make, logits: Logits) -> None:
    first, second = tiny_model("llama", layers=3), tiny_model("llama", layers=3)
    clean = logits(second)
    with make(first).on(first):
        assert torch.equal(logits(second), clean)
        assert active(second) == ()


def test_a_missing_module_and_one_that_is_no_projection_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(PatchError, match=r"has no module model\.layers\.9"):
        describe_base(llama, ["model.layers.9.mlp.down_proj"])
    with pytest.raises(PatchError, match="is a LlamaRMSNorm; a patch changes Linear and Conv1D projections"):
        describe_base(llama, ["model.norm"])


def test_on_and_off_take_milliseconds() -> None:
    model = nn.ModuleDict({str(i): nn.Linear(1536, 576, bias=False) for i in range(5)})
    entries = {str(i): LowRank(torch.randn(576, 100), torch.randn(1536, 100)) for i in range(5)}
    patch = Patch(entries, describe_base(model, entries))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with patch.on(model):
            pass
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
