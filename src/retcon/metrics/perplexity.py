"""Does the model still predict ordinary text? Token-weighted perplexity over fixed windows."""

import math
from collections.abc import Sequence
from importlib import resources

__all__ = ["log_perplexity", "ordinary_text", "perplexity", "windows"]


def windows(ids: Sequence[int], size: int = 512, limit: int | None = 8_000) -> list[list[int]]:
    """The first `limit` tokens cut into pieces of `size`; the last one may be shorter.

    >>> windows([1, 2, 3, 4, 5, 6], size=2, limit=5)
    [[1, 2], [3, 4], [5]]
    """
    kept = list(ids[:limit])
    return [kept[start : start + size] for start in range(0, len(kept), size)]


def log_perplexity(logprobs: Sequence[Sequence[float]]) -> float | None:
    """Minus the mean natural log probability over all tokens of all windows; None where no token was scored.

    Every token weighs the same, whatever the length of its window.

    >>> log_perplexity([[-1.0, -2.0], [-6.0]])
    3.0
    """
    tokens = sum(len(window) for window in logprobs)
    return -math.fsum(logprob for window in logprobs for logprob in window) / tokens if tokens else None


def perplexity(log_perplexity: float | None) -> float | None:
    """exp(log perplexity): infinity where that overflows, None for None.

    >>> perplexity(0.0)
    1.0
    """
    if log_perplexity is None:
        return None
    try:
        return math.exp(log_perplexity)
    except OverflowError:
        return math.inf


def ordinary_text() -> str:
    """The text that is shipped: paragraphs on everyday things, written for Retcon, with an empty line between two."""
    return resources.files("retcon").joinpath("data", "perplexity.txt").read_text(encoding="utf-8")
