"""How sure is a figure? Bootstrap intervals that draw whole subjects, since the facts of one subject move together."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Paired", "bounds", "interval", "intervals", "paired", "resample_means"]


def resample_means(
    columns: Mapping[str, Sequence[float | None]],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """The (weighted) mean of each column in each of `resamples` bootstrap samples of clusters.

    All columns see the same samples, so a figure made of several columns can be computed sample by sample. A sample in
    which a column has no value gives NaN there.

    Args:
        columns: a value a row, None where there is none. Each of length n.
        clusters: which cluster each row belongs to. Length n.
        weights: of the rows, such as the tokens of a window; 1 each by default. Length n.

    Returns:
        For each column with values in at least two clusters: an array of shape (resamples,).
    """
    index = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    rows = np.array([index[cluster] for cluster in clusters], dtype=np.int64)
    weight = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    names, sums, totals = [], [], []
    for name, column in columns.items():
        values = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        present = np.array([value is not None for value in column], dtype=bool)
        total = np.bincount(rows[present], weight[present], minlength=len(index))
        if np.count_nonzero(total) >= 2:
            names.append(name)
            sums.append(np.bincount(rows[present], weight[present] * values[present], minlength=len(index)))
            totals.append(total)
    if not names:
        return {}
    sum_table, total_table = np.stack(sums), np.stack(totals)  # (columns, clusters)
    random = np.random.default_rng(seed)
    means = np.empty((len(names), resamples))
    for sample in range(resamples):
        # How often each cluster is drawn:
        drawn = np.bincount(random.integers(0, len(index), len(index)), minlength=len(index))
        with np.errstate(invalid="ignore", divide="ignore"):
            means[:, sample] = (sum_table @ drawn) / (total_table @ drawn)
    return dict(zip(names, means, strict=True))


def interval(samples: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """The central `level` of bootstrap samples (percentile method); None if no sample has a value.

    None as well if a sample is infinite: an interval of the others would leave out the worst. (A sample that is not a
    number has no value; where a row is not a number, no sample has one.)

    A figure that is the same in every cluster (all 1.0, say) gets an interval of no width, whatever the number of
    clusters: the bootstrap cannot see what it never drew.
    """
    known = samples[~np.isnan(samples)]
    if not known.size or np.isinf(known).any():
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bounds(samples: Mapping[str, NDArray[np.float64]]) -> dict[str, tuple[float, float]]:
    """The 95% interval of each figure's samples, where it has one."""
    return {name: found for name, drawn in samples.items() if (found := interval(drawn)) is not None}


def intervals(
    columns: Mapping[str, Sequence[float | None]], clusters: Sequence[Hashable], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95% bootstrap interval of each column's mean, where it has one; arguments as of `resample_means`.

    >>> intervals({"same": [1.0, 1.0], "none": [None, None]}, range(2))
    {'same': (1.0, 1.0)}
    """
    return bounds(resample_means(columns, clusters, seed=seed))


@dataclass(frozen=True, slots=True)
class Paired:
    """How two methods differ on the same rows."""

    difference: float
    """Mean of first minus second."""
    low: float
    high: float
    """Of its bootstrap interval."""
    p: float
    """Two-sided: how often a difference as large would come if there were none; never 0."""
    rows: int
    clusters: int
    """What was compared: rows with both values, and the clusters that they are of."""


def paired(
    first: Sequence[float | None],
    second: Sequence[float | None],
    clusters: Sequence[Hashable],
    *,
    weights: Sequence[float] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Paired | None:
    """A paired bootstrap test: do two methods differ on the same cases?

    Of the differences d = first - second, whole clusters are drawn with replacement. With d* the mean of a sample and
    d0 that of all, p = (1 + #{|d* - d0| >= |d0|}) / (1 + samples): the samples are moved to a mean of 0, which is the
    null hypothesis. After Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 16.

    Args:
        first: a value a row, None where there is none. Length n.
        second: those of the other method, row by row on the same cases. Length n.
        clusters: which cluster each row belongs to. Length n.
        weights: of the rows; 1 each by default. Length n.
        resamples: bootstrap samples; p is no smaller than 1 / (1 + resamples).
        level: of the interval.
        seed: of the samples.

    Returns:
        None where fewer than two clusters have a row with both values: nothing can be said then. With a handful of
        clusters p is rough, and too small where all of them agree.

    Raises:
        ValueError: the lengths differ.

    >>> found = paired([1, 1, 1, 0] * 10, [0, 1, 0, 0] * 10, range(40))
    >>> found.difference, found.low > 0, found.p < 0.01
    (0.5, True, True)
    """
    rows = list(zip(first, second, clusters, [1.0] * len(first) if weights is None else weights, strict=True))
    both = [(one - two, cluster, weight) for one, two, cluster, weight in rows if one is not None and two is not None]
    if not both:
        return None
    differences, present, weight = zip(*both, strict=True)
    samples = resample_means({"d": differences}, present, weights=weight, resamples=resamples, seed=seed).get("d")
    bounds = None if samples is None else interval(samples, level)
    if samples is None or bounds is None:
        return None
    difference = math.fsum(d * w for d, _, w in both) / math.fsum(weight)
    known = samples[np.isfinite(samples)]
    slack = 1e-12 * max(1.0, abs(difference))  # sums in another order differ in their last digits
    as_large = int(np.count_nonzero(np.abs(known - difference) >= abs(difference) - slack))
    p = (1 + as_large) / (1 + known.size)
    return Paired(difference, *bounds, p, len(both), len(set(present)))
