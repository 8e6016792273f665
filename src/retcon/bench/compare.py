"""Two benches held against each other: the same cells, the same cases, and how sure the difference is."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retcon.bench import records
from retcon.bench.rows import Row, read
from retcon.bench.words import number
from retcon.errors import RetconError
from retcon.evaluate.record import restored
from retcon.metrics import METRICS
from retcon.metrics.intervals import paired

__all__ = ["Comparison", "Difference", "Pair", "compared", "rows_of"]

_SAME = ("model", "method", "dataset", "edits", "seed", "mode", "chunk")
"""What makes two rows the same cell; their options may differ."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two rows."""

    first: float
    second: float
    difference: float
    """First minus second."""
    low: float | None = None
    high: float | None = None
    """95% interval of a paired bootstrap that draws whole subjects; None for figures that no case has by itself."""
    p: float | None = None
    """Two-sided, see `retcon.metrics.intervals.paired`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One cell that both have."""

    first: str
    second: str
    """Names of the two rows."""
    n: int
    """Cases that both were judged on."""
    figures: dict[str, Difference]
    not_compared: dict[str, str] = field(default_factory=dict)
    """Why a figure that both have is not compared: in one of them it is no finite number."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells that both have and that can be compared, and names of the others."""

    pairs: list[Pair]
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """A sentence for each cell that both have and that cannot be compared: which, and why."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)


def compared(first: Path, second: Path, *, methods: tuple[str, str] | None = None, seed: int = 0) -> Comparison:
    """Compare the finished rows of two benches, cell by cell and case by case.

    Of several rows of one cell, as another version or other options leave them, the last is taken.

    Args:
        first: a folder of `retcon bench`, or its `rows.jsonl`.
        second: the other one; it may be the same.
        methods: hold one method of the first against another of the second, in place of each against itself.
        seed: of the bootstrap.

    Raises:
        RetconError: there are no rows, no cell is in both, or none of those can be compared; where some can, `refused`
            has the others.
    """
    own, other = methods or (None, None)
    mine, theirs = _cells(first, own), _cells(second, other)
    common = [cell for cell in mine if cell in theirs]
    if not common:
        raise RetconError(
            f"{first} and {second} have no finished cell in common; give two benches of the same model, set, N and seed"
        )
    pairs: list[Pair] = []
    refused: list[str] = []
    for cell in common:
        try:
            pairs.append(_pair((_home(first), mine[cell]), (_home(second), theirs[cell]), seed))
        except RetconError as error:
            name = mine[cell]["row"]
            refused.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if not pairs:
        raise RetconError(refused[0] + (f" ({len(refused) - 1} more cannot be compared)" if refused[1:] else ""))
    return Comparison(
        pairs,
        [row["row"] for cell, row in mine.items() if cell not in theirs],
        [row["row"] for cell, row in theirs.items() if cell not in mine],
        refused,
    )


def rows_of(place: Path) -> list[Row]:
    """The rows of a folder, or of a file of rows.

    Raises:
        RetconError: there are none, or they are of another kind of bench.
    """
    file = place / "rows.jsonl" if place.is_dir() else place
    rows = list(read(file).values())
    if not rows:
        raise RetconError(f"{place} holds no rows; give the --out of a `retcon bench`")
    if any("dataset" not in row for row in rows):
        raise RetconError(f"{place} holds rows of another kind of bench; give the --out of a `retcon bench`")
    return rows


def _home(place: Path) -> Path:
    """The folder that a row's files are below."""
    return place if place.is_dir() else place.parent


def _cells(place: Path, method: str | None) -> dict[tuple[Any, ...], Row]:
    """The finished rows by cell, with `method` those of one method, which then is no part of the cell."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows_of(place):
        if "metrics" in row and method in (None, row["method"]):
            told = row | {name: Path(row[name]).name for name in ("model", "dataset")}
            found[tuple(told[name] for name in _SAME if method is None or name != "method")] = row
    return found


def _pair(first: tuple[Path, Row], second: tuple[Path, Row], seed: int) -> Pair:
    """Two rows of one cell."""
    mine, theirs = (records.load(home / row["cases"]) for home, row in (first, second))
    rows = first[1], second[1]
    if [_asked(case) for case in mine] != [_asked(case) for case in theirs]:
        raise RetconError(
            f"{rows[0]['row']} and {rows[1]['row']} were judged on different cases; run both on the same set, with the "
            "same N, seed and sample"
        )
    figures, left = {}, {}
    for name in METRICS:
        one, two = (restored(row)["metrics"].get(name) for row in rows)
        if one is None or two is None:
            continue
        if math.isfinite(one) and math.isfinite(two):
            figures[name] = _difference(name, one, two, mine, theirs, seed)
        else:
            left[name] = f"it is {number(one)} in the first and {number(two)} in the second"
    return Pair(rows[0]["row"], rows[1]["row"], len(mine), figures, left)


def _asked(case: dict[str, Any]) -> tuple[Any, ...]:
    return case["id"], case["prompt"], case["target"]


def _difference(
    name: str, one: float, two: float, mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], seed: int
) -> Difference:
    own, other = ([case["metrics"].get(name) for case in cases] for cases in (mine, theirs))
    clusters = [(n, "") if case["subject"] is None else (-1, case["subject"]) for n, case in enumerate(mine)]
    found = paired(own, other, clusters, seed=seed)
    if found is None:
        return Difference(one, two, one - two)
    return Difference(one, two, found.difference, found.low, found.high, found.p)
