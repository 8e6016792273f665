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
