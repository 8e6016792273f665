"""Closed forms: the least change of a weight that maps keys to wanted outputs. Pure tensors, nothing of models.

Columns are facts: keys K are (d_k, N), residuals R are (d, N), and a change of the weight is returned in factors,
`Delta = U @ V.T` with U (d, r) and V (d_k, r), so that no (d, d_k) matrix is ever built. All work is done in fp64: on
ill-conditioned moments an fp32 solve can be wrong in every digit while its residual at the keys looks perfect.
"""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Factors", "Metric", "cholesky", "equality", "rank_one", "ridge", "shrunk"]


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
