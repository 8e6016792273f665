"""Closed forms: the least change of a weight that maps keys to wanted outputs. Pure tensors, nothing of models.

Columns are facts: keys K are (d_k, N), residuals R are (d, N), and a change of the weight is returned in factors,
`Delta = U @ V.T` with U (d, r) and V (d_k, r), so that no (d, d_k) matrix is ever built. All work is done in fp64: on
ill-conditioned moments an fp32 solve can be wrong in every digit while its residual at the keys looks perfect.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Factors",
    "Metric",
    "NullSpaceRule",
    "cholesky",
    "equality",
    "leakage",
    "null_space",
    "null_space_ridge",
    "plain_ridge",
    "rank_one",
    "restricted_ridge",
    "ridge",
    "shrunk",
]

NullSpaceRule = Literal["leakage", "absolute", "relative", "energy"]
"""How the null space of a second moment is told from the rest; see `null_space`."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A low-rank change `U @ V.T` of a weight in (out, in) orientation, fp64."""

    U: Float[Tensor, "d r"]
    V: Float[Tensor, "d_k r"]

    def dense(self) -> Float[Tensor, "d d_k"]:
        """The change as one matrix; for tests and small models."""
        return self.U @ self.V.T


@dataclass(frozen=True, slots=True)
class Metric:
    """A symmetric positive definite M, which says what each direction of a key costs, as its Cholesky factor."""

    lower: Float[Tensor, "d_k d_k"]

    def solve(self, keys: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k n"]:
        """M^{-1} keys."""
        return torch.cholesky_solve(keys, self.lower)


def shrunk(second: Float[Tensor, "d_k d_k"], count: int) -> Float[Tensor, "d_k d_k"]:
    """A second moment made safe to invert: `C + eps * (tr C / d_k) * I`.

    eps is 1e-3 where there were fewer tokens than dimensions, 1e-6 below ten times as many, else 0.
    """
    width = second.shape[0]
    eps = 1e-3 if count < width else 1e-6 if count < 10 * width else 0.0
    second = second.double()
    return second + eps * second.diagonal().mean() * torch.eye(width, dtype=torch.float64, device=second.device)


def cholesky(matrix: Float[Tensor, "d_k d_k"]) -> Metric:
    """Factor a metric in fp64; a ridge is added, tenfold until it holds and with a warning, where it is singular.

    Raises:
        ValueError: the matrix is not finite, or not positive definite with a ridge as large as its own diagonal.
    """
    matrix = matrix.double()
    matrix = (matrix + matrix.T) / 2
    if not torch.isfinite(matrix).all():
        raise ValueError("the second moments are not finite; compute the statistics again in float32")
    mean = float(matrix.diagonal().mean())
    eps = 0.0
    while eps <= 1.0:
        lower, failed = torch.linalg.cholesky_ex(
            matrix + eps * mean * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        )
        if not int(failed):
            if eps:
                warnings.warn(
                    f"the metric is singular; a ridge of {eps:g} of its mean diagonal was added", stacklevel=2
                )
            return Metric(lower)
        eps = 10 * eps if eps else 1e-8
    raise ValueError("the metric is not positive definite; compute the statistics again with more tokens")


def ridge(keys: Float[Tensor, "d_k n"], residuals: Float[Tensor, "d n"], metric: Metric) -> Factors:
    """Minimise `tr(Delta M Delta^T) + |Delta K - R|^2` (MEMIT, arXiv 2210.07229, eq. 14, with M = lambda C).

        A = M^{-1} K,  G = K^T A,  Delta = R (I + G)^{-1} A^T      for N <= d_k
        Delta = R [(M + K K^T)^{-1} K]^T                           for N > d_k

    Both are the same matrix; the first needs M's factor only, which one sweep shares over all batches.
    """
    keys, residuals = keys.double(), residuals.double()
    width, n = keys.shape
    if n <= width:
        answer = metric.solve(keys)
        gram = keys.T @ answer
        gram = (gram + gram.T) / 2 + torch.eye(n, dtype=gram.dtype, device=gram.device)
        return Factors(torch.cholesky_solve(residuals.T, torch.linalg.cholesky(gram)).T, answer)
    total = metric.lower @ metric.lower.T + keys @ keys.T
    return Factors(residuals, cholesky(total).solve(keys))


def equality(keys: Float[Tensor, "d_k n"], residuals: Float[Tensor, "d n"], metric: Metric) -> Factors:
    """Minimise `tr(Delta M Delta^T)` subject to `Delta K = R` exactly: `Delta = R (K^T M^{-1} K)^{-1} (M^{-1} K)^T`.

    Raises:
        ValueError: keys are linearly dependent (two facts share a key), so that R cannot be met exactly.
    """
    keys, residuals = keys.double(), residuals.double()
    answer = metric.solve(keys)
    gram = keys.T @ answer
    gram = (gram + gram.T) / 2
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()
    lower, failed = torch.linalg.cholesky_ex(gram * scale[:, None] * scale[None, :])
    if int(failed) or float(lower.diagonal().min()) < 1e-7:
        raise ValueError("two facts share a key, so their targets cannot both be met exactly; drop one or use ridge")
    return Factors((torch.cholesky_solve((residuals * scale).T, lower) * scale[:, None]).T, answer)


def rank_one(key: Float[Tensor, " d_k"], residual: Float[Tensor, " d"], metric: Metric) -> tuple[Factors, float]:
    """The rank-one change that sends `key` to `key`'s present output plus `residual` (ROME, arXiv 2202.05262, eq. 2).

        u = M^{-1} k,   Delta = residual u^T / (k . u)

    Returns the factors and the cosine of k and u; a small one means a huge, disabling update (arXiv 2403.07175).
    """
    key, residual = key.double(), residual.double()
    direction = metric.solve(key[:, None])[:, 0]
    inner = key @ direction
    cosine = float(inner / (key.norm() * direction.norm()).clamp_min(1e-300))
    return Factors((residual / inner)[:, None], direction[:, None]), cosine


def plain_ridge(keys: Float[Tensor, "d_k n"], residuals: Float[Tensor, "d n"], weight: float) -> Factors:
    """`ridge` with M = weight * I, for which no (d_k, d_k) factor is needed (UltraEdit, arXiv 2505.14679).

        Delta = R (K^T K + weight I)^{-1} K^T                     for n <= d_k
        Delta = R K^T (K K^T + weight I)^{-1}                     for n > d_k

    There are at most min(d, d_k) factors, also where there are more keys.

    Raises:
        ValueError: the weight is not positive, or a key or residual is not finite.
    """
    keys, residuals = keys.double(), residuals.double()
    if weight <= 0 or not (torch.isfinite(keys).all() and torch.isfinite(residuals).all()):
        raise ValueError("a ridge needs a weight above zero, and keys and residuals that are finite")
    width, n = keys.shape
    gram = keys.T @ keys if n <= width else keys @ keys.T
    gram.diagonal().add_(weight)
    lower = torch.linalg.cholesky(gram)
    if n <= width:
        return _few(Factors(torch.cholesky_solve(residuals.T, lower).T, keys))
    return _few(Factors(residuals, torch.cholesky_solve(keys, lower)))


def restricted_ridge(
    keys: Float[Tensor, "d_k n"],
    residuals: Float[Tensor, "d n"],
    matrix: Float[Tensor, "d_k d_k"],
    chosen: Int[Tensor, " m"],
) -> Factors:
    """`ridge` with all columns of Delta zero but the chosen ones (ECE, doi 10.1145/3696410.3714835).

        A = M[S, S] + K[S] K[S]^T,   Delta[:, S] = R (A^{-1} K[S])^T

    Args:
        keys: K.
        residuals: R.
        matrix: M, symmetric positive definite.
        chosen: S, indices of coordinates of a key, each at most once.

    Returns:
        Factors of full height; the rows of V that are not chosen are zero.
    """
    keys, residuals, matrix = keys.double(), residuals.double(), matrix.double()
    part = keys[chosen]
    right = torch.zeros_like(keys)
    right[chosen] = cholesky(matrix[chosen][:, chosen] + part @ part.T).solve(part)
    return _few(Factors(residuals, right))


# ------------------------------------------------------------------------------------------- the null space


def null_space(
    second: Float[Tensor, "d_k d_k"],
    threshold: float,
    rule: NullSpaceRule = "absolute",
    keys: Float[Tensor, "d_k n"] | None = None,
) -> Float[Tensor, "d_k r"]:
    """An orthonormal basis U0 of the directions in which ordinary keys have next to nothing.

    With C = U diag(s) U^T and s rising, U0 is the first r columns of U (AlphaEdit, arXiv 2410.02355), r the most with

        absolute   s_r < threshold                              (the paper's; in squared activation units)
        relative   s_r < threshold * max s
        energy     s_1 + ... + s_r <= threshold * tr C
        leakage    mean over keys of |U0^T k|^2 / |k|^2 <= threshold

    From 1 on a bound on energy or on leakage lets all directions pass.

    Args:
        second: C.
        threshold: the bound.
        rule: what is bounded.
        keys: for `leakage`, keys that C was not made of.

    Raises:
        ValueError: C is not finite, `leakage` is given no keys, or no direction passes.
    """
    second = second.double()
    if not torch.isfinite(second).all():
        raise ValueError("the second moments are not finite; compute the statistics again in float32")
    sizes, directions = torch.linalg.eigh((second + second.T) / 2)
    if rule in ("absolute", "relative"):
        limit = threshold if rule == "absolute" else threshold * float(sizes[-1])
        count = int((sizes < limit).sum())
    else:
        if rule == "energy":
            parts = sizes.clamp_min(0) / sizes.clamp_min(0).sum().clamp_min(1e-300)
        elif keys is None or not keys.shape[1]:
            raise ValueError("a null space by its leakage needs keys that the statistics were not made of")
        else:
            parts = (directions.T @ _unit(keys)).square().mean(1)
        count = len(sizes) if threshold >= 1 else int((parts.cumsum(0) <= threshold).sum())
    if not count:
        raise ValueError(
            f"no direction is free of ordinary keys by the {rule} rule at {threshold:g}; give a higher threshold"
        )
    basis: Float[Tensor, "d_k r"] = directions[:, :count].clone()
    return basis


def leakage(basis: Float[Tensor, "d_k r"], keys: Float[Tensor, "d_k n"]) -> float:
    """How much of keys a basis holds: the mean of |U0^T k|^2 / |k|^2, from 0 to 1."""
    return float((basis.T @ _unit(keys)).square().sum(0).mean())


def null_space_ridge(
    keys: Float[Tensor, "d_k n"],
    residuals: Float[Tensor, "d n"],
    basis: Float[Tensor, "d_k r"],
    weight: float,
    past: Float[Tensor, "d_k n_p"],
) -> Factors:
    """Minimise `|Delta K - R|^2 + |Delta K_p|^2 + weight |Delta|^2` over `Delta = X U0^T`.

        Kt = U0^T K,  Pt = U0^T K_p,   Delta = R Kt^T (Pt Pt^T + weight I + Kt Kt^T)^{-1} U0^T

    With P = U0 U0^T this is AlphaEdit's R K^T P (K_p K_p^T P + K K^T P + weight I)^{-1} (arXiv 2410.02355), but
    symmetric and of size r. While there are fewer keys than directions, the keys' products alone give the same, with
    Q = [Pt, Kt]:

        (weight I + Q Q^T)^{-1} Kt = Q (weight I + Q^T Q)^{-1} [0, I]^T

    Args:
        keys: K.
        residuals: R.
        basis: U0, orthonormal.
        weight: the paper's L2, above zero.
        past: K_p, keys whose outputs are to stay; may have no column.

    Raises:
        ValueError: the weight is not above zero, or so small that the system is singular.
    """
    keys, residuals, basis, past = keys.double(), residuals.double(), basis.double(), past.double()
    inside = basis.T @ keys
    every = torch.cat([basis.T @ past, inside], 1)
    rank, n = every.shape
    gram = every.T @ every if n <= rank else every @ every.T
    gram.diagonal().add_(weight)
    lower, failed = torch.linalg.cholesky_ex(gram)
    if weight <= 0 or int(failed):
        raise ValueError(f"a ridge of {weight:g} leaves the system in the null space singular; give more of it")
    if n <= rank:
        chosen = torch.eye(n, dtype=gram.dtype, device=gram.device)[:, n - keys.shape[1] :]
        answer = every @ torch.cholesky_solve(chosen, lower)
    else:
        answer = torch.cholesky_solve(inside, lower)
    return _few(Factors(residuals, basis @ answer))


def _unit(keys: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k n"]:
    """Keys of length one; zeros stay."""
    keys = keys.double()
    unit: Float[Tensor, "d_k n"] = keys / keys.norm(dim=0).clamp_min(1e-300)
    return unit


def _few(factors: Factors) -> Factors:
    """The same change in at most min(d, d_k) factors."""
    height, width = len(factors.U), len(factors.V)
    if factors.U.shape[1] <= min(height, width):
        return factors
    change = factors.dense()
    side = torch.eye(min(height, width), dtype=change.dtype, device=change.device)
    return Factors(change, side) if width <= height else Factors(side, change.T)
