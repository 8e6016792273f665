"""Is the model like one that never saw what is to be forgotten? Its retain-only twin is the measure."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from retcon.metrics.summary import harmonic_mean

__all__ = ["ForgetQuality", "Utility", "forget_quality", "model_utility"]


class ForgetQuality(NamedTuple):
    """What a two-sample Kolmogorov-Smirnov test says of two models' truth ratios."""

    p: float
    """How often a distance this large comes from models that do not differ; above 0.05: not told apart."""
    log10_p: float
    """Its decimal logarithm, also where p itself underflows."""
    distance: float
    """D, the largest gap between the two distribution functions."""
    n: tuple[int, int]
    """How many items each model was asked; with few, the test tells little."""
    floor: bool
    """Whether the two are completely separated, so that p is the least one that n allows and grades nothing."""


def forget_quality(ratios: Sequence[float], twin: Sequence[float]) -> ForgetQuality | None:
    """The p-value of the two-sided two-sample Kolmogorov-Smirnov test between per-item truth ratios.

    p = P(D' >= D) for two samples drawn from one continuous distribution, by counting lattice paths exactly; above a
    million pairs by Kolmogorov's limit. The same for R and 1/R. Maini et al., "TOFU" (arXiv 2401.06121).

    Args:
        ratios: R of each forget item under the model. Length n.
        twin: the same under the model trained without the forget set. Length m.

    Returns:
        None where one side is empty, or a ratio is NaN.
    """
    n, m = len(ratios), len(twin)
    if not n or not m or any(math.isnan(ratio) for ratio in (*ratios, *twin)):
        return None
    gap = _gap(sorted(ratios), sorted(twin))
    log10_p = _exact(gap, n, m) if n * m <= _EXACT else _limit(gap / (n * m), n, m)
    return ForgetQuality(10**log10_p, log10_p, gap / (n * m), (n, m), gap == n * m)


class Utility(NamedTuple):
    """The three figures of one set of questions that should be answered as before, each between 0 and 1."""

    probability: float | None
    """Mean probability of the answer; among options for real authors and world facts."""
    rouge: float | None
    """Mean ROUGE-L recall of the generated answer."""
    truth_ratio: float | None
    """`truth_ratio_retain`."""


def model_utility(retain: Utility, real_authors: Utility, world_facts: Utility) -> float | None:
    """The harmonic mean of the nine figures of three sets: 0 if one is 0, None if one is missing (arXiv 2401.06121)."""
    return harmonic_mean([*retain, *real_authors, *world_facts])


_EXACT = 1_000_000


def _gap(first: Sequence[float], second: Sequence[float]) -> int:
    """n m D as a whole number, so that equal distances compare as equal."""
    n, m = len(first), len(second)
    return max(abs(bisect_right(first, x) * m - bisect_right(second, x) * n) for x in {*first, *second})


def _exact(gap: int, n: int, m: int) -> float:
    """log10 of the share of lattice paths from (0, 0) to (n, m) that leave |i m - j n| < gap."""
    if gap == 0:
        return 0.0
    # inside[j]: paths to (i, j) that never touch the boundary
    inside = [1] + [0] * m
    for j in range(1, m + 1):
        inside[j] = inside[j - 1] if j * n < gap else 0
    for i in range(1, n + 1):
        inside[0] = inside[0] if i * m < gap else 0
        for j in range(1, m + 1):
            inside[j] = inside[j] + inside[j - 1] if abs(i * m - j * n) < gap else 0
    total = math.comb(n + m, n)
    return _log10(total - inside[m]) - _log10(total)


def _limit(distance: float, n: int, m: int) -> float:
    """log10 of 2 sum_k (-1)^(k-1) exp(-2 k^2 z^2), z = D sqrt(n m / (n + m))."""
    square = distance**2 * n * m / (n + m)
    if square < 0.03:  # the series needs many terms, and p is 1 to six digits
        return 0.0
    # the first term apart, which alone may underflow
    rest = math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * k - 1) * square) for k in range(1, 101))
    return min(0.0, (math.log(2 * rest) - 2 * square) / math.log(10))


def _log10(count: int) -> float:
    """Of a whole number of any size."""
    shift = max(0, count.bit_length() - 1_000)
    return math.log10(count >> shift) + shift * math.log10(2)
