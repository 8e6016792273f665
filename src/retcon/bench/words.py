"""How rows are put into words: names, numbers, Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["as_json", "duration", "markdown", "number", "slug"]


def slug(name: str) -> str:
    """A row's name as a file may have it.

    >>> slug("memit, idk100, 4 merged by mean_key")
    'memit-idk100-4-merged-by-mean_key'
    """
    kept = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)
    return "-".join(part for part in kept.split("-") if part)


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method in JSON types."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many digits; one too small for three of them in powers of ten.

    >>> number(0.91234), number(None), number(1.5e-9), number(61.25, 1), number(math.inf)
    ('0.912', '–', '1.5e-09', '61.2', '∞')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.1e}" if digits == 3 and 0 < abs(value) < 0.0005 else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.2), duration(42), duration(200), duration(9000)
    ('1 s', '42 s', '3 min', '2.5 h')
    """
    if seconds < 99:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [list(heads), ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(map(_safe, row)) + " |\n" for row in rows)


def _safe(cell: str) -> str:
    return cell.replace("|", "/").replace("\n", " ")
