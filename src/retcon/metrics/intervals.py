"""How sure is a figure? Bootstrap intervals that draw whole subjects, since the facts of one subject move together."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["interval", "resample_means"]


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

    A figure that is the same in every cluster (all 1.0, say) gets an interval of no width, whatever the number of
    clusters: the bootstrap cannot see what it never drew.
    """
    known = samples[np.isfinite(samples)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
