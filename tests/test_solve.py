"""The closed forms are the minimisers they claim to be, also where fp32 or an explicit inverse would be wrong."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retcon import solve

F64 = torch.float64
SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 24)
ORDERS = st.floats(0, 12)

fast = settings(max_examples=60, deadline=None, derandomize=True)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def spectrum(seed: int, width: int, orders: float) -> Tensor:
    """A symmetric matrix with random eigenvectors whose condition number is 10**orders."""
    basis, _ = torch.linalg.qr(draw(seed, width, width))
    lengths = torch.logspace(0, -orders, width, dtype=F64)
    matrix: Tensor = (basis * lengths) @ basis.T
    return (matrix + matrix.T) / 2


def scaled(seed: int, width: int, orders: float) -> Tensor:
    """D C D with C well-conditioned and D wild: condition 10**orders, and yet every digit of a solve can be had."""
    sides = torch.logspace(0, -orders / 2, width, dtype=F64)[torch.randperm(width, generator=torch.Generator())]
    centre = torch.eye(width, dtype=F64) + 0.3 * spectrum(seed, width, 1)
    return sides[:, None] * centre * sides[None, :]


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.dtype == F64
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def dense_ridge(keys: Tensor, residuals: Tensor, matrix: Tensor) -> Tensor:
    """R K^T (M + K K^T)^{-1}, as the paper writes it."""
    answer: Tensor = torch.linalg.solve(matrix + keys @ keys.T, keys @ residuals.T)
    return answer.T


class Exact:
    """A matrix of fractions: sums, products and solves without any rounding."""

    def __init__(self, rows: list[list[Fraction]]) -> None:
        self.rows = rows

    @classmethod
    def of(cls, tensor: Tensor) -> Exact:
        return cls([[Fraction(value) for value in row] for row in tensor.tolist()])

    def tensor(self) -> Tensor:
        return torch.tensor([[float(value) for value in row] for row in self.rows], dtype=F64)

    @property
    def T(self) -> Exact:  # noqa: N802
        return Exact([list(column) for column in zip(*self.rows, strict=True)])

    def __add__(self, other: Exact) -> Exact:
        return Exact([[a + b for a, b in zip(*pair, strict=True)] for pair in zip(self.rows, other.rows, strict=True)])

    def __matmul__(self, other: Exact) -> Exact:
        columns = other.T.rows
        return Exact(
            [[sum((a * b for a, b in zip(r, c, strict=True)), Fraction()) for c in columns] for r in self.rows]
        )

    def solve(self, other: Exact) -> Exact:
        """Of a positive definite matrix, so that no pivot is zero: Gauss and Jordan."""
        n = len(self.rows)
        rows = [left + right for left, right in zip(self.rows, other.rows, strict=True)]
        for i in range(n):
            rows[i] = [value / rows[i][i] for value in rows[i]]
            for j in range(n):
                if j != i:
                    rows[j] = [b - rows[j][i] * a for a, b in zip(rows[i], rows[j], strict=True)]
        return Exact([row[n:] for row in rows])


def exact_ridge(keys: Tensor, residuals: Tensor, matrix: Tensor) -> Tensor:
    """R K^T (M + K K^T)^{-1}, rounded once."""
    K, R, M = Exact.of(keys), Exact.of(residuals), Exact.of(matrix)
    return (M + K @ K.T).solve(K @ R.T).T.tensor()


def exact_equality(keys: Tensor, residuals: Tensor, matrix: Tensor) -> Tensor:
    """R (K^T M^{-1} K)^{-1} K^T M^{-1}, rounded once."""
    K, R, M = Exact.of(keys), Exact.of(residuals), Exact.of(matrix)
    A = M.solve(K)
    return (A @ (K.T @ A).solve(R.T)).T.tensor()


@fast
@given(SEEDS, st.integers(1, 6), WIDTHS, st.integers(1, 30), st.floats(-3, 4))
def test_ridge_is_the_dense_solution(seed: int, d: int, width: int, n: int, weight: float) -> None:
    keys, residuals = draw(seed, width, n), draw(seed + 1, d, n)
    matrix = 10**weight * (spectrum(seed, width, 2) + 0.1 * torch.eye(width, dtype=F64))
    factors = solve.ridge(keys, residuals, solve.cholesky(matrix))
    assert factors.U.shape[1] == factors.V.shape[1] <= n
    near(factors.dense(), dense_ridge(keys, residuals, matrix), 1e-9)


@fast
@given(SEEDS, st.integers(1, 6), WIDTHS, st.integers(1, 30), st.floats(-2, 3))
def test_the_objectives_gradient_is_zero_at_the_ridge(seed: int, d: int, width: int, n: int, weight: float) -> None:
    keys, residuals = draw(seed, width, n), draw(seed + 1, d, n)
    matrix = 10**weight * (spectrum(seed, width, 2) + 0.1 * torch.eye(width, dtype=F64))
    change = solve.ridge(keys, residuals, solve.cholesky(matrix)).dense().requires_grad_()
    objective = torch.trace(change @ matrix @ change.T) + (change @ keys - residuals).square().sum()
    (gradient,) = torch.autograd.grad(objective, change)
    assert gradient.norm() <= 1e-9 * (2 * residuals @ keys.T).norm()


@fast
@given(SEEDS, st.integers(2, 24), ORDERS)
@example(0, 24, 12.0)
def test_ridge_on_a_wild_scale_keeps_every_digit(seed: int, width: int, orders: float) -> None:
    """Condition numbers up to 1e12 that stem from the scale of coordinates cost no digit."""
    n = max(width // 3, 1)
    matrix = scaled(seed, width, orders)
    sides = matrix.diagonal().sqrt()
    keys, residuals = sides[:, None] * draw(seed, width, n), draw(seed + 1, 3, n)
    found = solve.ridge(keys, residuals, solve.cholesky(matrix)).dense() * sides
    even = matrix / sides[:, None] / sides[None, :]
    near(found, dense_ridge(keys / sides[:, None], residuals, even), 1e-11)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(SEEDS, st.integers(3, 8), ORDERS)
@example(0, 8, 12.0)
def test_ill_conditioned_spectra_lose_no_more_than_they_must(seed: int, width: int, orders: float) -> None:
    """Against fractions: fp64's error is the condition number times its unit, at condition 1e12 a few 1e-4."""
    matrix, keys, residuals = spectrum(seed, width, orders), draw(seed + 1, width, 2), draw(seed + 2, 3, 2)
    metric = solve.cholesky(matrix)
    tolerance = 1e-13 + 100 * torch.finfo(F64).eps * 10**orders

    near(solve.ridge(keys, residuals, metric).dense(), exact_ridge(keys, residuals, matrix), tolerance)
    near(solve.equality(keys, residuals, metric).dense(), exact_equality(keys, residuals, matrix), tolerance)
    factors, _ = solve.rank_one(keys[:, 0], residuals[:, 0], metric)
    near(factors.dense(), exact_equality(keys[:, :1], residuals[:, :1], matrix), tolerance)
    part = torch.arange(0, width, 2)
    found = solve.restricted_ridge(keys, residuals, matrix, part).dense()[:, part]
    near(found, exact_ridge(keys[part], residuals, matrix[part][:, part]), tolerance)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(SEEDS, st.integers(3, 8), ORDERS, st.integers(0, 8))
@example(0, 8, 12.0, 2)
@example(0, 8, 12.0, 8)
def test_past_keys_of_wild_spectra_lose_no_more_than_they_must(seed: int, width: int, orders: float, n: int) -> None:
    """Of the null-space ridge, in both forms, against fractions: past keys outweigh the ridge by up to 1e12."""
    past = 10 ** (orders / 2) * draw(seed, width, n) * torch.logspace(0, -orders / 2, n, dtype=F64)
    keys, residuals = draw(seed + 1, width, 2), draw(seed + 2, 3, 2)
    basis = torch.eye(width, dtype=F64)[:, : width - 1]
    found = solve.null_space_ridge(keys, residuals, basis, 1.0, past).dense()
    inside = Exact.of(basis.T @ past)
    system = (inside @ inside.T).tensor() + torch.eye(width - 1, dtype=F64) if n else torch.eye(width - 1, dtype=F64)
    tolerance = 1e-13 + 100 * torch.finfo(F64).eps * 10**orders
    assert (found[:, -1] == 0).all()
    near(found[:, :-1], exact_ridge(keys[:-1], residuals, system), tolerance)


def test_both_forms_of_the_ridge_meet() -> None:
    """N = d_k takes the factored form, one key more (of zeros, which says nothing) the dense one."""
    keys, residuals, metric = draw(0, 9, 9), draw(1, 4, 9), solve.cholesky(spectrum(2, 9, 3))
    few = solve.ridge(keys, residuals, metric).dense()
    many = solve.ridge(torch.cat([keys, torch.zeros(9, 1)], 1), torch.cat([residuals, draw(3, 4, 1)], 1), metric)
    near(many.dense(), few, 1e-11)


@fast
@given(SEEDS, st.integers(2, 12))
def test_ridge_with_no_weight_fits_and_with_all_of_it_does_nothing(seed: int, width: int) -> None:
    n = width // 2
    keys, residuals = draw(seed, width, n), draw(seed + 1, 3, n)
    second = spectrum(seed, width, 2)
    light = solve.ridge(keys, residuals, solve.cholesky(1e-9 * second)).dense()
    near(light @ keys, residuals, 1e-4)
    near(light, solve.equality(keys, residuals, solve.cholesky(second)).dense(), 1e-3)
    heavy = solve.ridge(keys, residuals, solve.cholesky(1e12 * second)).dense()
    assert heavy.norm() <= 1e-6 * residuals.norm()


def test_ridge_takes_a_batch_in_any_order() -> None:
    keys, residuals, metric = draw(0, 9, 5), draw(1, 4, 5), solve.cholesky(spectrum(2, 9, 3))
    order = torch.tensor([3, 1, 4, 0, 2])
    near(
        solve.ridge(keys[:, order], residuals[:, order], metric).dense(),
        solve.ridge(keys, residuals, metric).dense(),
        1e-12,
    )


def test_batches_with_orthogonal_keys_add_up() -> None:
    """MEMIT in sequence: keys orthogonal in the metric, the second batch with the first's keys in it, is one batch."""
    matrix = spectrum(0, 10, 2)
    metric = solve.cholesky(matrix)
    keys = torch.linalg.qr(draw(1, 10, 6))[0]
    keys = metric.lower @ keys  # so that K^T M^{-1} K = I
    residuals = draw(2, 4, 6)
    first = solve.ridge(keys[:, :3], residuals[:, :3], metric).dense()
    later = solve.cholesky(matrix + keys[:, :3] @ keys[:, :3].T)
    second = solve.ridge(keys[:, 3:], residuals[:, 3:], later).dense()
    near(first + second, solve.ridge(keys, residuals, metric).dense(), 1e-10)


@fast
@given(SEEDS, st.integers(1, 4), WIDTHS, st.floats(0, 6))
def test_equality_fits_at_least_cost(seed: int, d: int, width: int, orders: float) -> None:
    n = -(-width // 2)
    keys, residuals, matrix = draw(seed, width, n), draw(seed + 1, d, n), spectrum(seed + 2, width, orders)
    change = solve.equality(keys, residuals, solve.cholesky(matrix)).dense()
    near(change @ keys, residuals, 1e-8)
    # Every other change that fits differs by one that is zero at the keys, and the cost has no slope that way.
    free = draw(seed + 3, d, width)
    free = free - free @ keys @ torch.linalg.pinv(keys)
    slope = torch.trace(change @ matrix @ free.T)
    scale = torch.trace(change @ matrix @ change.T).sqrt() * torch.trace(free @ matrix @ free.T).clamp_min(0).sqrt()
    assert abs(slope) <= 1e-7 * scale + 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_equality_refuses_facts_that_share_a_key(scale: float) -> None:
    keys, residuals, metric = draw(0, 9, 3), draw(1, 4, 4), solve.cholesky(spectrum(2, 9, 3))
    keys = torch.cat([keys, scale * keys[:, 1:2]], 1)
    with pytest.raises(ValueError, match="share a key"):
        solve.equality(keys, residuals, metric)
    assert torch.isfinite(solve.ridge(keys, residuals, metric).dense()).all()


def test_equality_refuses_more_keys_than_width() -> None:
    with pytest.raises(ValueError, match="cannot both be met"):
        solve.equality(draw(0, 4, 5), draw(1, 3, 5), solve.cholesky(torch.eye(4)))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_equality_does_not_mind_keys_of_unlike_length(scale: float) -> None:
    keys, residuals = draw(0, 9, 3), draw(1, 4, 3)
    keys[:, 0] *= scale
    near(solve.equality(keys, residuals, solve.cholesky(spectrum(2, 9, 3))).dense() @ keys, residuals, 1e-8)


@fast
@given(SEEDS, st.integers(1, 6), WIDTHS, st.floats(0, 8))
def test_rank_one_hits_its_residual_at_its_key(seed: int, d: int, width: int, orders: float) -> None:
    """r-ROME: with a residual taken at the averaged key, the averaged key is sent to v*."""
    weight, key, wanted = draw(seed, d, width), draw(seed + 1, width), draw(seed + 2, d)
    metric = solve.cholesky(spectrum(seed + 3, width, orders))
    factors, cosine = solve.rank_one(key, wanted - weight @ key, metric)
    assert factors.U.shape == (d, 1)
    assert factors.V.shape == (width, 1)
    assert 0 < cosine <= 1 + 1e-12
    near((weight + factors.dense()) @ key, wanted, 1e-10)
    near(factors.dense(), solve.equality(key[:, None], (wanted - weight @ key)[:, None], metric).dense(), 1e-9)


def test_rank_one_leaves_alone_what_is_orthogonal_to_its_direction() -> None:
    factors, _ = solve.rank_one(draw(0, 9), draw(1, 4), solve.cholesky(spectrum(2, 9, 3)))
    direction = torch.nn.functional.normalize(factors.V[:, 0], dim=0)
    other = draw(3, 9)
    other = other - (other @ direction) * direction
    assert (factors.dense() @ other).norm() <= 1e-12 * factors.dense().norm() * other.norm()


def test_rank_one_without_statistics_writes_along_the_key() -> None:
    key = draw(0, 9)
    factors, cosine = solve.rank_one(key, draw(1, 4), solve.cholesky(torch.eye(9)))
    near(factors.V[:, 0], key, 1e-14)
    assert cosine == pytest.approx(1)


def test_rank_one_knows_when_its_direction_is_almost_at_right_angles() -> None:
    _, cosine = solve.rank_one(
        torch.tensor([1.0, 1e-5]), torch.ones(3), solve.cholesky(torch.diag(torch.tensor([1e4, 1e-4])))
    )
    assert cosine < 1e-2


def test_one_fact_without_weight_is_the_rank_one_change() -> None:
    key, residual, matrix = draw(0, 9), draw(1, 4), spectrum(2, 9, 2)
    factors, _ = solve.rank_one(key, residual, solve.cholesky(matrix))
    ridge = solve.ridge(key[:, None], residual[:, None], solve.cholesky(1e-12 * matrix))
    near(ridge.dense(), factors.dense(), 1e-9)


def test_work_is_in_fp64_whatever_comes_in() -> None:
    """On this metric an fp32 solve is wrong in every digit."""
    matrix, keys, residuals = spectrum(0, 64, 7.8), draw(1, 64, 8).float(), draw(2, 5, 8).float()
    metric = solve.cholesky(matrix)
    factors = solve.ridge(keys, residuals, metric)
    assert factors.U.dtype == factors.V.dtype == metric.lower.dtype == F64
    near(factors.dense(), dense_ridge(keys.double(), residuals.double(), matrix), 1e-6)
    single, _ = solve.rank_one(keys[:, 0], residuals[:, 0], metric)
    assert single.U.dtype == F64


@pytest.mark.parametrize(("count", "eps"), [(3, 1e-3), (8, 1e-6), (79, 1e-6), (80, 0.0), (10_000, 0.0)])
def test_moments_are_shrunk_by_what_their_tokens_leave_open(count: int, eps: float) -> None:
    second = spectrum(0, 8, 2).float()
    wanted = second.double() + eps * second.double().trace() / 8 * torch.eye(8, dtype=F64)
    near(solve.shrunk(second, count), wanted, 1e-15)


def test_moments_of_too_few_tokens_can_be_factored_once_shrunk() -> None:
    keys = draw(0, 12, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = solve.cholesky(solve.shrunk(keys @ keys.T / 5, 5))
    assert torch.isfinite(metric.solve(draw(1, 12, 2))).all()


def test_a_metric_is_its_inverse() -> None:
    matrix, keys = spectrum(0, 9, 3), draw(1, 9, 4)
    near(matrix @ solve.cholesky(matrix).solve(keys), keys, 1e-11)


def test_a_singular_metric_gets_a_ridge_and_says_so() -> None:
    keys = draw(0, 12, 5)
    with pytest.warns(UserWarning, match=r"the metric is singular; a ridge of 1e-0\d of its mean diagonal was added"):
        metric = solve.cholesky(keys @ keys.T)
    near(metric.lower @ metric.lower.T, keys @ keys.T, 1e-6)


def test_a_slightly_negative_metric_gets_a_larger_ridge() -> None:
    matrix = spectrum(0, 6, 2) - 1e-2 * torch.eye(6, dtype=F64) - 1e-4 * torch.eye(6, dtype=F64)
    with pytest.warns(UserWarning, match="a ridge of 0.001 of its"):
        solve.cholesky(matrix)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "not finite"),
        (torch.tensor([[math.inf, 0.0], [0.0, 1.0]]), "not finite"),
        (-torch.eye(3), "not positive definite"),
        (torch.zeros(3, 3), "not positive definite"),
    ],
)
def test_what_is_no_metric_is_refused(matrix: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        solve.cholesky(matrix)


# ------------------------------------------------------------------------------------------- the restricted ridge


@fast
@given(SEEDS, st.integers(1, 6), WIDTHS, st.integers(1, 30), st.integers(1, 24), st.floats(0, 4))
def test_the_restricted_ridge_is_the_dense_one_on_what_is_chosen(
    seed: int, d: int, width: int, n: int, size: int, orders: float
) -> None:
    keys, residuals, matrix = draw(seed, width, n), draw(seed + 1, d, n), spectrum(seed + 2, width, orders)
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:size]
    factors = solve.restricted_ridge(keys, residuals, matrix, chosen)
    assert factors.V.shape[0] == width
    assert factors.U.shape[1] == factors.V.shape[1] == min(n, d, width) or n <= min(d, width)
    change = factors.dense()
    near(change[:, chosen], dense_ridge(keys[chosen], residuals, matrix[chosen][:, chosen]), 1e-8)
    rest = torch.ones(width, dtype=torch.bool)
    rest[chosen] = False
    assert not change[:, rest].any()


@fast
@given(SEEDS, st.integers(2, 24), st.integers(1, 12))
def test_the_objectives_gradient_is_zero_on_what_is_chosen(seed: int, width: int, size: int) -> None:
    keys, residuals, matrix = draw(seed, width, 4), draw(seed + 1, 3, 4), spectrum(seed + 2, width, 2)
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:size]
    change = solve.restricted_ridge(keys, residuals, matrix, chosen).dense().requires_grad_()
    objective = torch.trace(change @ matrix @ change.T) + (change @ keys - residuals).square().sum()
    (gradient,) = torch.autograd.grad(objective, change)
    assert gradient[:, chosen].norm() <= 1e-9 * (2 * residuals @ keys.T).norm()


def test_the_restricted_ridge_on_everything_is_the_ridge() -> None:
    keys, residuals, matrix = draw(0, 9, 4), draw(1, 5, 4), spectrum(2, 9, 3)
    whole = solve.restricted_ridge(keys, residuals, matrix, torch.arange(9)).dense()
    near(whole, solve.ridge(keys, residuals, solve.cholesky(matrix)).dense(), 1e-11)


# ------------------------------------------------------------------------------------------------ the null space


def some_basis(seed: int, width: int, size: int) -> Tensor:
    basis: Tensor = torch.linalg.qr(draw(seed, width, width))[0][:, :size]
    return basis


def none(width: int) -> Tensor:
    return torch.zeros(width, 0, dtype=F64)


def dense_null_space_ridge(keys: Tensor, residuals: Tensor, basis: Tensor, weight: float, past: Tensor) -> Tensor:
    """R K^T P (K_p K_p^T P + K K^T P + L2 I)^{-1}, as the paper writes it: not symmetric, of the size of a key."""
    P = basis @ basis.T
    system = past @ past.T @ P + keys @ keys.T @ P + weight * torch.eye(len(P), dtype=F64)
    answer: Tensor = torch.linalg.solve(system.T, P @ keys @ residuals.T)
    return answer.T


@fast
@given(SEEDS, st.integers(1, 6), WIDTHS, st.integers(1, 24), st.integers(1, 30), st.integers(0, 30), st.floats(-3, 4))
@example(0, 4, 12, 6, 3, 3, 0.0)  # as many keys as directions, the last that the products of keys serve
@example(0, 4, 12, 6, 3, 4, 0.0)  # one more
def test_the_null_space_ridge_is_the_papers(
    seed: int, d: int, width: int, size: int, n: int, before: int, weight: float
) -> None:
    basis = some_basis(seed, width, size)
    keys, residuals, past = draw(seed + 1, width, n), draw(seed + 2, d, n), draw(seed + 3, width, before)
    factors = solve.null_space_ridge(keys, residuals, basis, 10**weight, past)
    assert factors.U.shape[1] == factors.V.shape[1] <= max(min(d, width), min(n, d, width))
    near(factors.dense(), dense_null_space_ridge(keys, residuals, basis, 10**weight, past), 1e-8)


@fast
@given(SEEDS, st.integers(2, 24), st.integers(1, 6), st.floats(-2, 2))
def test_both_forms_of_the_null_space_ridge_meet(seed: int, size: int, n: int, weight: float) -> None:
    """Keys of zeros say nothing, and take the solve from the products of keys to the products of directions."""
    basis, past = some_basis(seed, 24, size), draw(seed + 3, 24, max(size - n, 0))
    keys, residuals = draw(seed + 1, 24, min(n, size)), draw(seed + 2, 4, min(n, size))
    few = solve.null_space_ridge(keys, residuals, basis, 10**weight, past).dense()
    more = torch.cat([past, torch.zeros(24, size)], 1)
    near(solve.null_space_ridge(keys, residuals, basis, 10**weight, more).dense(), few, 1e-9)


@fast
@given(SEEDS, st.integers(2, 24), ORDERS)
@example(0, 24, 12.0)
def test_keys_of_wild_length_lose_no_digit_in_the_null_space(seed: int, width: int, orders: float) -> None:
    """A ridge as small as 1e-12 of the keys' products, the keys themselves well apart: the fit is exact to it."""
    n = max(width // 4, 1)
    keys = torch.linalg.qr(draw(seed, width, n))[0]
    residuals = draw(seed + 1, 3, n)
    change = solve.null_space_ridge(keys, residuals, torch.eye(width, dtype=F64), 10**-orders, none(width)).dense()
    near(change, residuals @ keys.T / (1 + 10**-orders), 1e-12)


@fast
@given(SEEDS, st.integers(2, 24), st.integers(1, 23))
def test_what_is_outside_the_null_space_is_not_touched(seed: int, width: int, size: int) -> None:
    """P k = 0 gives Delta k = 0."""
    basis = some_basis(seed, width, min(size, width - 1))
    change = solve.null_space_ridge(draw(seed + 1, width, 5), draw(seed + 2, 3, 5), basis, 0.1, none(width)).dense()
    other = draw(seed + 3, width)
    other = other - basis @ (basis.T @ other)
    other = other - basis @ (basis.T @ other)
    assert (change @ other).norm() <= 1e-14 * max(float(change.norm() * other.norm()), 1.0)


def test_with_all_directions_and_no_past_it_is_the_ridge_without_statistics() -> None:
    keys, residuals, everything = draw(0, 9, 4), draw(1, 5, 4), torch.eye(9, dtype=F64)
    found = solve.null_space_ridge(keys, residuals, everything, 0.3, none(9)).dense()
    near(found, solve.ridge(keys, residuals, solve.cholesky(0.3 * everything)).dense(), 1e-12)
    near(found, solve.plain_ridge(keys, residuals, 0.3).dense(), 1e-12)


def test_with_all_directions_and_next_to_no_ridge_it_is_the_equality() -> None:
    keys, residuals, everything = draw(0, 9, 4), draw(1, 5, 4), torch.eye(9, dtype=F64)
    found = solve.null_space_ridge(keys, residuals, everything, 1e-12, none(9)).dense()
    near(found, solve.equality(keys, residuals, solve.cholesky(everything)).dense(), 1e-9)
    near(found @ keys, residuals, 1e-9)


def test_past_keys_stay_as_they_are() -> None:
    """Up to the ridge, in both forms: what was written before is not written over."""
    basis, past, keys, residuals = some_basis(0, 20, 15), draw(1, 20, 6), draw(2, 20, 4), draw(3, 5, 4)
    for before in (past, torch.cat([past, torch.zeros(20, 12)], 1)):
        change = solve.null_space_ridge(keys, residuals, basis, 1e-9, before).dense()
        assert (change @ past).norm() <= 1e-6 * residuals.norm()
        near(change @ keys, residuals, 1e-6)


@pytest.mark.parametrize("before", [0, 2, 20])
def test_a_batch_whose_targets_are_met_changes_nothing(before: int) -> None:
    found = solve.null_space_ridge(draw(0, 9, 4), torch.zeros(5, 4), some_basis(1, 9, 6), 0.3, draw(2, 9, before))
    assert not found.dense().any()


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_the_null_space_ridge_needs_a_ridge(weight: float) -> None:
    keys = draw(0, 9, 2)
    with pytest.raises(ValueError, match="leaves the system in the null space singular"):
        solve.null_space_ridge(torch.cat([keys, keys], 1), draw(1, 3, 4), some_basis(2, 9, 6), weight, none(9))


def diagonal(*sizes: float) -> Tensor:
    return torch.diag(torch.tensor(sizes, dtype=F64))


@pytest.mark.parametrize(
    ("rule", "threshold", "size"),
    [
        ("absolute", 2e-2, 2),  # the eigenvalues are 1e-4, 1e-2, 0.1, 1.0
        ("absolute", 1e-2, 1),  # strictly below, as released
        ("absolute", math.inf, 4),
        ("relative", 0.05, 2),
        ("relative", 0.5, 3),
        ("energy", 0.0101 / 1.1101 + 1e-9, 2),
        ("energy", 0.2, 3),
        ("energy", 1.0, 4),
        ("energy", math.inf, 4),
    ],
)
def test_the_null_space_by_each_rule(rule: solve.NullSpaceRule, threshold: float, size: int) -> None:
    basis = solve.null_space(diagonal(0.1, 1e-4, 1.0, 1e-2), threshold, rule)
    assert basis.shape == (4, size)
    near(basis.T @ basis, torch.eye(size, dtype=F64), 1e-14)
    smallest = torch.zeros(4, 4, dtype=F64)
    for i in [1, 3, 0, 2][:size]:
        smallest[i, i] = 1
    near(basis @ basis.T, smallest, 1e-14)


def test_relative_rules_do_not_mind_the_scale_of_keys_and_the_absolute_one_does() -> None:
    second, keys = spectrum(0, 12, 4), draw(1, 12, 50)
    rules: tuple[tuple[solve.NullSpaceRule, float], ...] = (("relative", 1e-2), ("energy", 1e-2), ("leakage", 0.3))
    for rule, threshold in rules:
        one, other = (solve.null_space(scale * second, threshold, rule, scale * keys) for scale in (1.0, 1e6))
        assert 1 < one.shape[1] == other.shape[1] < 12
    assert solve.null_space(second, 2e-2).shape[1] > 1
    with pytest.raises(ValueError, match="by the absolute rule at 0.02; give a higher threshold"):
        solve.null_space(1e6 * second, 2e-2)


@fast
@given(SEEDS, st.integers(2, 20), st.floats(0.05, 0.95), st.floats(0, 4))
def test_the_null_space_by_leakage_is_the_largest_within_the_bound(
    seed: int, width: int, bound: float, orders: float
) -> None:
    second = spectrum(seed, width, orders)
    keys = torch.linalg.cholesky(second) @ draw(seed + 1, width, 30)
    directions = torch.linalg.eigh(second)[1]
    if float((directions[:, 0] @ keys).square().div(keys.square().sum(0)).mean()) > bound:
        with pytest.raises(ValueError, match="no direction is free of ordinary keys by the leakage rule"):
            solve.null_space(second, bound, "leakage", keys)
        return
    basis = solve.null_space(second, bound, "leakage", keys)
    assert solve.leakage(basis, keys) <= bound + 1e-9
    size = basis.shape[1]
    assert size == width or solve.leakage(directions[:, : size + 1], keys) > bound


def test_leakage_is_the_share_of_keys_inside_whatever_their_length() -> None:
    basis = torch.eye(4, dtype=F64)[:, :2]
    inside, outside, both = torch.eye(4)[0], 100 * torch.eye(4)[3], torch.tensor([3.0, 0, 4.0, 0])
    assert solve.leakage(basis, inside[:, None]) == 1
    assert solve.leakage(basis, outside[:, None]) == 0
    assert solve.leakage(basis, torch.stack([outside, both], 1)) == pytest.approx(9 / 25 / 2)
    assert solve.leakage(basis, torch.zeros(4, 1)) == 0
    known = draw(0, 4, 2)
    rest = solve.null_space(known @ known.T, 1e-9)
    assert rest.shape[1] == 2
    assert solve.leakage(rest, known @ draw(1, 2, 9)) < 1e-20  # keys of the span that the basis is orthogonal to


@pytest.mark.parametrize(
    ("second", "rule", "reason"),
    [
        (torch.full((2, 2), math.nan), "absolute", "not finite"),
        (torch.eye(2), "leakage", "needs keys that the statistics were not made of"),
        (torch.eye(2), "energy", "by the energy rule at 0.01; give a higher threshold"),
    ],
)
def test_no_null_space_is_refused(second: Tensor, rule: solve.NullSpaceRule, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        solve.null_space(second, 1e-2, rule)
