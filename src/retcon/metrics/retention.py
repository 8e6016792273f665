"""Are early edits still there after late ones? The retention curve of a run that edits in steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from retcon.metrics.summary import mean

__all__ = ["Retention", "retention"]


@dataclass(frozen=True, slots=True)
class Retention:
    """Means over chunks of edits; None where nothing was measured."""

    immediate: float | None
    """Each chunk right after its own step: what a score taken step by step shows."""
    final: float | None
    """All chunks after the last step: what is left."""
    by_age: tuple[float | None, ...]
    """[a]: chunks that have seen a later steps."""
    forgotten: float | None
    """immediate - final, over the chunks that have both."""


def retention(scores: Sequence[Sequence[float | None]]) -> Retention:
    """Summarise the matrix Ret[t, j], the score of chunk j after step t.

    Args:
        scores: row t holds the scores of chunks 0 to t after step t, so it has t + 1 values; None was not measured.

    Raises:
        ValueError: row t has not t + 1 values.

    >>> found = retention([[1.0], [0.5, 1.0], [0.0, 0.5, 1.0]])
    >>> found.immediate, found.final, found.by_age
    (1.0, 0.5, (1.0, 0.5, 0.0))
    """
    for step, row in enumerate(scores):
        if len(row) != step + 1:
            raise ValueError(f"row {step} has {len(row)} scores; after step {step} there are {step + 1} chunks")
    if not scores:
        return Retention(None, None, (), None)
    own = [row[-1] for row in scores]
    last = scores[-1]
    by_age = tuple(mean(scores[chunk + age][chunk] for chunk in range(len(scores) - age)) for age in range(len(scores)))
    gaps = [before - after for before, after in zip(own, last, strict=True) if before is not None and after is not None]
    return Retention(mean(own), mean(last), by_age, mean(gaps))
