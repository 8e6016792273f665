"""Entries act as the weight change they stand for; joining and compressing them loses nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch import Dense, LowRank
from retcon.patch.entries import combine, compress, svd


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(d_out: int, d_in: int, r: int, seed: int = 0) -> LowRank:
    return LowRank(draw(d_out, r, seed=seed), draw(d_in, r, seed=seed + 1))


def exact(entry: LowRank) -> Tensor:
    return entry.U.double() @ entry.V.double().T


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


@pytest.mark.parametrize("entry", [low_rank(5, 7, 2), Dense(draw(5, 7))])
def test_apply_adds_the_delta(entry: LowRank | Dense) -> None:
    x, y = draw(2, 3, 7, seed=5), draw(2, 3, 5, seed=6)
    assert entry.shape == (5, 7)
    torch.testing.assert_close(entry.apply(x, y), y + x @ entry.delta().T)


@pytest.mark.parametrize("entry", [low_rank(5, 7, 2), Dense(draw(5, 7))])
def test_apply_computes_in_fp32_and_returns_the_dtype_of_the_output(entry: LowRank | Dense) -> None:
    x, y = draw(3, 7, seed=5).bfloat16(), draw(3, 5, seed=6).bfloat16()
    out = entry.apply(x, y)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, entry.apply(x.float(), y.float()).bfloat16())


def test_apply_keeps_fp64() -> None:
    entry, x, y = low_rank(5, 7, 2), draw(3, 7).double(), draw(3, 5).double()
    assert relative(entry.apply(x, y), y + x @ exact(entry).T) < 1e-14


@pytest.mark.parametrize("entry", [low_rank(5, 7, 2), Dense(draw(5, 7))])
def test_autocast_does_not_round_the_change(entry: LowRank | Dense) -> None:
    x, y = draw(3, 7, seed=5), draw(3, 5, seed=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = entry.apply(x, y)
    assert torch.equal(out, entry.apply(x, y))


@pytest.mark.parametrize("entry", [low_rank(5, 7, 2), Dense(draw(5, 7))])
def test_gradients_flow_through_input_and_output(entry: LowRank | Dense) -> None:
    x, y = draw(3, 7).requires_grad_(), draw(3, 5).requires_grad_()
    entry.apply(x, y).sum().backward()
    assert y.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(x.grad, entry.delta().sum(0).expand(3, 7))


def test_factors_of_unlike_ranks_are_refused() -> None:
    with pytest.raises(PatchError, match=r"must be \(d_out, r\) and \(d_in, r\)"):
        LowRank(draw(5, 2), draw(7, 3))


def test_a_dense_vector_is_refused() -> None:
    with pytest.raises(PatchError, match="is a matrix"):
        Dense(draw(5))


def test_few_factors_stay_as_they_are_side_by_side() -> None:
    a, b = low_rank(8, 9, 3), low_rank(8, 9, 4, seed=9)
    both = combine(a, b)
    assert isinstance(both, LowRank)
    assert torch.equal(both.U, torch.cat([a.U, b.U], 1))
    assert torch.equal(both.V, torch.cat([a.V, b.V], 1))


def test_a_dense_change_makes_the_sum_dense() -> None:
    a, b = low_rank(8, 9, 3), Dense(draw(8, 9, seed=4))
    both = combine(a, b)
    assert isinstance(both, Dense)
    torch.testing.assert_close(both.D, a.delta() + b.D)


def test_changes_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(PatchError, match="same module"):
        combine(low_rank(8, 9, 3), low_rank(9, 8, 3))


@settings(deadline=None, max_examples=40)
@given(d_out=st.integers(1, 12), d_in=st.integers(1, 12), r=st.integers(1, 30), more=st.integers(1, 30))
def test_too_many_factors_are_compressed_without_loss(d_out: int, d_in: int, r: int, more: int) -> None:
    a, b = low_rank(d_out, d_in, r), low_rank(d_out, d_in, more, seed=7)
    both = combine(a, b)
    assert both.rank <= min(d_out, d_in)
    assert relative(both.delta(), exact(a) + exact(b)) < 1e-5


@pytest.mark.parametrize(("d_out", "d_in"), [(8, 20), (20, 8), (8, 8)])
def test_compression_survives_factors_of_unlike_scales(d_out: int, d_in: int) -> None:
    a, b = low_rank(d_out, d_in, 8), low_rank(d_out, d_in, 8, seed=3)
    both = combine(LowRank(a.U * 1e9, a.V * 1e-9), LowRank(b.U * 1e-9, b.V * 1e9))
    assert both.rank == 8
    assert relative(both.delta(), exact(a) + exact(b)) < 1e-5


@pytest.mark.parametrize(("d_out", "d_in"), [(8, 20), (20, 8)])
def test_repeated_factors_compress_to_their_true_rank(d_out: int, d_in: int) -> None:
    a = low_rank(d_out, d_in, 2)
    many = a
    for _ in range(6):
        many = combine(many, a)  # type: ignore[assignment]
    assert many.rank <= 8
    assert compress(many).rank == 2
    assert relative(many.delta(), 7 * exact(a)) < 1e-5


def test_exact_zeros_are_dropped() -> None:
    a = low_rank(4, 6, 3)
    padded = LowRank(torch.cat([a.U, torch.zeros(4, 3)], 1), torch.cat([a.V, draw(6, 3, seed=4)], 1))
    assert compress(padded).rank == 3
    assert combine(padded, LowRank(torch.zeros(4, 2), draw(6, 2))).rank == 3
    assert combine(LowRank(torch.zeros(4, 5), draw(6, 5)), LowRank(torch.zeros(4, 2), draw(6, 2))).rank == 0


def test_a_full_rank_entry_is_left_alone_by_compress() -> None:
    a = low_rank(5, 7, 3)
    assert compress(a) is a


@pytest.mark.parametrize("entry", [low_rank(6, 9, 3), low_rank(6, 9, 20), Dense(draw(6, 9))])
def test_svd_gives_the_delta_back_in_fp64(entry: LowRank | Dense) -> None:
    left, values, right = svd(entry)
    wanted = exact(entry) if isinstance(entry, LowRank) else entry.D.double()
    assert relative(left * values @ right.T, wanted) < 1e-12
    assert torch.equal(values, values.sort(descending=True).values)
    assert len(values) == min(entry.rank, 6)
