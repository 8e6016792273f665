"""What do many cases say together? Averages that skip what could not be asked, and the one score."""

from collections.abc import Iterable

__all__ = ["harmonic_mean", "mean"]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None if none is, never 0.

    >>> mean([1.0, None, 0.0])
    0.5
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """n / (1/v1 + ... + 1/vn) for values >= 0: 0 if one is 0, None if one is missing.

    >>> harmonic_mean([1.0, 0.5, 0.5])
    0.6
    """
    known = list(values)
    if not known or None in known:
        return None
    if any(value == 0 for value in known):
        return 0.0
    return len(known) / sum(1 / value for value in known if value is not None)
