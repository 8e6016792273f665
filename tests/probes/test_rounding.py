"""Round-to-nearest: half a step at most, twice is once, and the model comes back to the bit."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retcon.errors import RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.methods.unlearning.base import linear_paths
from retcon.patch import Dense, Patch, Step, describe_base
from retcon.probes.rounding import quantised, rounded

TinyLM = Callable[..., LM]
Bits = Callable[[LM], object]


def weight(seed: int, d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(d_out, 1, generator=generator).exp()
    return (torch.randn(d_out, d_in, generator=generator) * spread).to(dtype)


def weight_of(lm: LM, path: str) -> torch.Tensor:
    found = lm.module(path).weight
    assert isinstance(found, torch.Tensor)
    return found


@given(
    st.integers(0, 2**30), st.integers(1, 5), st.integers(1, 40), st.integers(2, 8), st.sampled_from([None, 1, 7, 128])
)
def test_no_value_moves_by_more_than_half_a_step_and_rounding_again_changes_nothing(
    seed: int, d_out: int, d_in: int, bits: int, group: int | None
) -> None:
    W = weight(seed, d_out, d_in)
    found = rounded(W, bits, group)
    size = d_in if group is None else group
    for start in range(0, d_in, size):
        part, before = found[:, start : start + size], W[:, start : start + size]
        step = before.abs().amax(1, keepdim=True).double() / (2 ** (bits - 1) - 1)
        assert ((part.double() - before.double()).abs() <= step / 2 * (1 + 1e-6)).all()
        assert (part / step).round().unique().numel() <= 2**bits - 1
    assert torch.equal(rounded(found, bits, group), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_in_half_precision_rounding_again_changes_nothing_and_the_dtype_stays(dtype: torch.dtype, bits: int) -> None:
    found = rounded(weight(3, 8, 64, dtype), bits)
    assert found.dtype == dtype
    assert torch.equal(rounded(found, bits), found)


def test_values_by_hand_and_rows_of_zeros() -> None:
    W = torch.tensor([[7.0, -3.4, 3.6, 0.4], [0.0, 0.0, 0.0, 0.0], [-14.0, 1.1, 0.9, 6.9]])
    wanted = torch.tensor([[7.0, -3.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-14.0, 2.0, 0.0, 6.0]])
    assert torch.equal(rounded(W, 4), wanted)
    halves = rounded(torch.tensor([[7.0, 3.4, 70.0, 34.0]]), 4, 2)
    assert torch.equal(halves, torch.tensor([[7.0, 3.0, 70.0, 30.0]]))


def test_what_is_added_to_rounded_weights_below_half_a_step_is_rounded_away() -> None:
    """How quantisation undoes a small edit."""
    W = rounded(weight(5, 6, 50), 4)
    step = W.abs().amax(1, keepdim=True) / 7
    D = 0.45 * step * torch.sign(weight(6, 6, 50)) * (W.abs() < W.abs().amax(1, keepdim=True))
    assert D.any()
    assert torch.equal(rounded(W + D, 4), W)
    assert not torch.equal(rounded(W + 3 * D, 4), W)


@pytest.mark.parametrize(("bits", "group", "said"), [(1, None, "give at least 2"), (8, 0, "give at least 1")])
def test_senseless_options_are_refused(bits: int, group: int | None, said: str) -> None:
    with pytest.raises(RetconError, match=said):
        rounded(torch.ones(2, 2), bits, group)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_inside_all_linear_weights_of_blocks_are_rounded_along_their_rows_and_outside_none_has_changed(
    family: str, tiny_lm: TinyLM, bits: Bits
) -> None:
    lm = tiny_lm(family)
    before, paths = bits(lm), linear_paths(lm, range(lm.arch.n_layers))
    originals = {path: weight_of(lm, path) for path in paths}
    head = weight_of(lm, lm.arch.head)
    with quantised(lm, 4):
        for path in paths:
            now, was = weight_of(lm, path), originals[path]
            now, was = (now.T, was.T) if lm.arch.conv1d else (now, was)
            assert torch.equal(now, rounded(was, 4))
            assert not torch.equal(now, was)
        assert weight_of(lm, lm.arch.head) is head
    assert bits(lm) == before


def test_a_patch_is_merged_before_rounding_and_an_error_inside_leaves_no_trace(tiny_lm: TinyLM, bits: Bits) -> None:
    lm = tiny_lm("gpt2")
    path = lm.arch.mlp_out[1]
    generator = torch.Generator().manual_seed(1)
    D = torch.randn(lm.arch.d_model, lm.arch.d_mlp, generator=generator)
    patch = Patch({path: Dense(D)}, describe_base(lm.model, [path]), (Step(method="hand"),))
    before, was = bits(lm), weight_of(lm, path).detach().clone()

    def fails() -> None:
        with quantised(lm, 8, 16, merged=patch):
            assert torch.equal(weight_of(lm, path).T, rounded(was.T + D, 8, 16))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert bits(lm) == before


def test_a_weight_that_is_no_plain_parameter_is_refused(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen2")
    module = lm.module(lm.arch.mlp_out[2])
    packed = torch.nn.Parameter(
        torch.zeros(weight_of(lm, lm.arch.mlp_out[2]).shape, dtype=torch.int8), requires_grad=False
    )
    monkeypatch.setitem(module._parameters, "weight", packed)
    with pytest.raises(UnsupportedModel, match="quantised already"), quantised(lm, 8):
        pass
