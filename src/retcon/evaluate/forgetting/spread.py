"""How sure the figures on forgetting are: bootstrap intervals that draw whole groups of questions."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retcon.evaluate.forgetting.measure import Twin, Values, attacks
from retcon.evaluate.forgetting.plan import KEPT, NEAR, UTILITY, Item
from retcon.metrics import FORGET_METRICS
from retcon.metrics.intervals import bounds, resample_means
from retcon.metrics.membership import privleak, rel_diff

__all__ = ["RESAMPLES", "clusters", "intervals"]

RESAMPLES = 1_000

Samples = NDArray[np.float64]


def clusters(items: Sequence[Item]) -> list[Hashable]:
    """What is drawn as a whole: the questions of one group, else of one subject; each question where that gives one."""
    named = [item.case.forget.group or item.case.forget.subject for item in items]
    found: list[Hashable] = [(n, "") if name is None else (-1, name) for n, name in enumerate(named)]
    return found if len(set(found)) > 1 else list(range(len(items)))


def intervals(
    asked: Sequence[str], values: Values, twin: Twin | None, sets: Mapping[str, Sequence[Item]], seed: int
) -> dict[str, tuple[float, float]]:
    """95% intervals of the figures that can have one: all that are asked for but the p-value of forget quality.

    Args:
        asked: the figures.
        values: of one model.
        twin: of the model without what is to be forgotten, which is taken as it is.
        sets: the items that were asked.
        seed: of the bootstrap; the same seed draws the same samples for every model.
    """
    samples = _means(values.forget, sets["forget"], asked, seed)
    samples |= _means(values.retain, sets["retain"], KEPT, seed)
    samples |= _means(values.near, sets.get("near", ()), NEAR, seed)
    attacked = {
        name: _auc(scores, clusters(sets["forget"]), clusters(sets["holdout"]), seed)
        for name, scores in attacks(values, twin).items()
    }
    samples |= {name: found for name, found in attacked.items() if found is not None}
    found = attacked.get("mia_min_k")
    if found is not None and twin is not None:
        for name, change in (("privleak", privleak), ("rel_diff", rel_diff)):
            changed = [change(value, twin.auc) for value in found.tolist()]
            samples[name] = np.array([np.nan if value is None else value for value in changed])
    if (useful := _utility(values, sets, seed)) is not None:
        samples["model_utility"] = useful
    return bounds({name: samples[name] for name in FORGET_METRICS if name in samples and name in asked})


def _means(
    rows: Sequence[Mapping[str, float | None]], items: Sequence[Item], names: Sequence[str], seed: int
) -> dict[str, Samples]:
    """Samples of the mean of each figure of rows that has values."""
    columns = {name: [row.get(name) for row in rows] for name in names if any(name in row for row in rows)}
    if not columns:
        return {}
    return resample_means(columns, clusters(items), resamples=RESAMPLES, seed=seed)


def _utility(values: Values, sets: Mapping[str, Sequence[Item]], seed: int) -> Samples | None:
    """Samples of model utility: each of its three sets is drawn apart."""
    parts: list[Samples] = []
    for n, name in enumerate(UTILITY):
        rows = values.utility.get(name, [])
        found = _means(rows, sets[name], list(rows[0]) if rows else [], seed + n)
        if len(found) < 3:
            return None
        parts += found.values()
    with np.errstate(divide="ignore"):  # 1 / (1/0) is 0, as it should be
        samples: Samples = len(parts) / (1 / np.stack(parts)).sum(0)
    return samples


def _auc(
    scores: tuple[Sequence[float], Sequence[float]], ours: Sequence[Hashable], theirs: Sequence[Hashable], seed: int
) -> Samples | None:
    """Samples of the AUC of an attack, its two sides drawn apart; None where one has a single cluster, or NaN."""
    forget, holdout = (np.asarray(side, dtype=np.float64) for side in scores)
    if np.isnan(forget).any() or np.isnan(holdout).any():
        return None
    if len(forget) != len(ours) or len(holdout) != len(theirs) or min(len(set(ours)), len(set(theirs))) < 2:
        return None
    # won[i, j]: whether the holdout item j looks less like a member than the forget item i
    won = (holdout > forget[:, None]) + 0.5 * (holdout == forget[:, None])
    left, right = _places(ours), _places(theirs)
    random = np.random.default_rng(seed)
    samples = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        some, others = _drawn(left, random), _drawn(right, random)
        samples[n] = some @ won @ others / (some.sum() * others.sum())
    return samples


def _places(named: Sequence[Hashable]) -> NDArray[np.int64]:
    """Which cluster each item is in, by number."""
    index = {name: place for place, name in enumerate(dict.fromkeys(named))}
    return np.array([index[name] for name in named], dtype=np.int64)


def _drawn(places: NDArray[np.int64], random: np.random.Generator) -> Samples:
    """How often each item is in a sample of clusters."""
    size = int(places.max()) + 1
    counts = np.bincount(random.integers(0, size, size), minlength=size)
    drawn: Samples = counts[places].astype(np.float64)
    return drawn
