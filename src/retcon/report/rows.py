"""Rows of a benchmark, as its runner hands them over, and the boards that they are compared on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, cast

from retcon.errors import RetconError
from retcon.evaluate.record import restored, scored
from retcon.metrics import METRICS
from retcon.report.words import preferred

__all__ = ["Board", "Entry", "Retained", "Row", "boards", "called", "failures", "named", "options", "taken"]

Value = float | None
Bounds = tuple[float, float]


class Retained(TypedDict, total=False):
    """The figures after so many of a row's edits, over all edits so far."""

    edits: Required[int]
    figures: Required[Mapping[str, Value]]


class Row(TypedDict, total=False):
    """One cell of a benchmark: one method on one dataset with so many edits, from one seed.

    Only method, dataset and n must be there; a key that is not listed here is left aside.
    """

    method: Required[str]
    dataset: Required[str]
    n: Required[int]
    """How many edits."""
    model: str
    mode: str
    """How they were made: `batch` or `sequential`."""
    seed: int
    figures: Mapping[str, Value]
    """Of the edited model, by the names of `retcon.metrics.METRICS`."""
    before: Mapping[str, Value]
    """Of the unedited one."""
    not_finite: Mapping[str, str]
    """Of the `figures` that are None those that were measured: `inf` or `nan`."""
    before_not_finite: Mapping[str, str]
    """The same of `before`."""
    intervals: Mapping[str, Sequence[float]]
    """95% (low, high) of `figures`."""
    seconds: float | None
    """What the edits took; of the evaluation nothing."""
    retention: Sequence[Retained]
    """Of a sequential run, the figures on the way, with rising `edits`."""
    error: str | None
    """Why there are no figures: the cell failed, or the method does not apply."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A method on a board: the mean over its seeds."""

    method: str
    seeds: int
    figures: dict[str, Value]
    before: dict[str, Value]
    intervals: dict[str, Bounds]
    """Of one seed its own; of several from the lowest end to the highest."""
    seconds: Value
    retention: list[tuple[int, dict[str, Value]]]

    @property
    def quality(self) -> Value:
        """What boards are ranked by: the score, or where none was measured, efficacy; free-running where measured."""
        return self.figures.get(self.ranked_by)

    @property
    def ranked_by(self) -> str:
        """The name of that figure."""
        score = preferred(self.figures, "score")
        return score if self.figures.get(score) is not None else preferred(self.figures, "efficacy")

    @property
    def surprise(self) -> Value:
        """By what share ordinary text got more surprising: perplexity after over before, less 1."""
        then, now = (_perplexity(side) for side in (self.before, self.figures))
        if then is None or now is None or then <= 0:
            return None
        return now / then - 1 if math.isfinite(then) else math.nan


@dataclass(frozen=True, slots=True)
class Board:
    """Methods that may be compared: one model, one dataset, one number of edits, one mode; the best first."""

    model: str
    dataset: str
    n: int
    mode: str
    entries: list[Entry]

    @property
    def facts(self) -> str:
        """What was edited, in words."""
        return self._told("")

    @property
    def title(self) -> str:
        """What is compared, in words."""
        return self._told(f" on {self.model}" if self.model else "")

    def _told(self, where: str) -> str:
        mode = f", {self.mode}" if self.mode not in ("", "batch") else ""
        return f"{self.n:,} fact{'' if self.n == 1 else 's'} of {self.dataset}{where}{mode}"


def boards(rows: Iterable[Mapping[str, Any]]) -> list[Board]:
    """The rows that have figures, method by method over their seeds, in the order in which they came.

    Args:
        rows: of the form of `Row`, or as `retcon bench` writes them.

    Raises:
        RetconError: a row lacks its method, dataset or n.
    """
    cells: dict[tuple[str, str, int, str], dict[str, list[Row]]] = {}
    for row in taken(rows):
        if _measured(row):
            place = (row.get("model", ""), row["dataset"], row["n"], row.get("mode", ""))
            cells.setdefault(place, {}).setdefault(row["method"], []).append(row)
    found = []
    for place, methods in cells.items():
        entries = [_entry(name, same) for name, same in methods.items()]
        found.append(Board(*place, sorted(entries, key=_rank, reverse=True)))
    return found


def failures(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows that have an error, or no figures."""
    return [row for row in taken(rows) if not _measured(row)]


def taken(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows in the form of `Row`, of those that share a name the last; errors as in `boards`. Figures that are no
    finite numbers are such numbers again."""
    last = list({row.get("row", number): scored(restored(row)) for number, row in enumerate(rows)}.values())
    for number, row in enumerate(last, 1):
        for key in ("method", "dataset", "edits" if "edits" in row else "n"):
            if key not in row:
                raise RetconError(f"row {number} of the benchmark has no {key}; a row has method, dataset and n")
    return [
        _adopted(row, name) if "edits" in row else cast("Row", row)
        for row, name in zip(last, called(last), strict=True)
    ]


def named(options: Mapping[str, Any]) -> list[str]:
    """Options of a method as a row's name tells them; of a file its last part.

    >>> named({"layers": (1, 2), "steps": 7})
    ['layers=1,2', 'steps=7']
    """
    return [f"{key}={_plain(value)}" for key, value in options.items()]


def called(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the method of each row is called: with those of its options that not all rows of the method share.

    >>> rome, one, two = ({"method": "rome", "options": {"steps": n}} for n in (7, 7, 9))
    >>> called([rome, one]), called([one, two])
    (['rome', 'rome'], ['rome, steps=7', 'rome, steps=9'])
    """
    told: dict[str, list[list[str]]] = {}
    for row in rows:
        told.setdefault(str(row["method"]), []).append(named(row.get("options") or {}))
    shared = {method: set.intersection(*map(set, each)) for method, each in told.items()}
    left = {method: iter(each) for method, each in told.items()}
    return [
        ", ".join([method, *(option for option in next(left[method]) if option not in shared[method])])
        for method in (str(row["method"]) for row in rows)
    ]


def options(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each option that rows were made with, and the methods that had it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for option in named(row.get("options") or {}):
            if row["method"] not in (methods := found.setdefault(option, [])):
                methods.append(str(row["method"]))
    return found


def _measured(row: Row) -> bool:
    return not row.get("error") and bool(row.get("figures"))


def _adopted(row: Mapping[str, Any], name: str) -> Row:
    """A row of `retcon bench`: its time leaves statistics out, and is none where targets came from a cache."""
    chunk, n, each = row.get("chunk"), int(row.get("n") or row["edits"]), row.get("seconds_per_edit")
    made: Row = {
        "method": name,
        "dataset": _short(row["dataset"]),
        "n": n,
        "model": _short(row.get("model", "")),
        "mode": str(row.get("mode") or "") if chunk is None else f"{chunk:,} at a time",
        "seed": row.get("seed", 0),
        "figures": row.get("metrics") or {},
        "before": row.get("before") or {},
        "intervals": row.get("intervals") or {},
        "seconds": None if each is None else each * n,
        "error": row.get("failed") or (f"does not apply: {row['na']}" if "na" in row else None),
    }
    kept = row.get("retention") or {}
    followed = {"efficacy": kept.get("scores"), "efficacy_gen": (kept.get("efficacy_gen") or {}).get("scores")}
    scores = {name: steps for name, steps in followed.items() if steps}
    steps = zip(*scores.values(), strict=True)
    return made | {"retention": [_step(dict(zip(scores, step, strict=True)), int(chunk or n), n) for step in steps]}


def _step(scores: Mapping[str, Sequence[Value]], chunk: int, n: int) -> Retained:
    """Figures of each chunk so far as those of all edits so far; the last chunk may be smaller."""
    sizes = [min(chunk, n - chunk * place) for place in range(len(next(iter(scores.values()))))]
    return {"edits": sum(sizes), "figures": {name: _of_all(found, sizes) for name, found in scores.items()}}


def _of_all(scores: Sequence[Value], sizes: Sequence[int]) -> Value:
    known = [(value, size) for value, size in zip(scores, sizes, strict=True) if value is not None]
    whole = sum(size for _, size in known)
    return math.fsum(value * size for value, size in known) / whole if whole else None


def _plain(value: Any) -> str:
    if isinstance(value, str) and Path(value).exists():
        return Path(value).name
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(place: object) -> str:
    """A name as it is, of a path its last part."""
    return Path(str(place)).name if Path(str(place)).exists() else str(place)


def _entry(method: str, rows: Sequence[Row]) -> Entry:
    names = list(dict.fromkeys(name for row in rows for name in row.get("figures", {})))
    return Entry(
        method=method,
        seeds=len(rows),
        figures={name: _mean(row["figures"].get(name) for row in rows) for name in names},
        before={name: _mean(row.get("before", {}).get(name) for row in rows) for name in names},
        intervals={name: bounds for name in names if (bounds := _envelope(name, rows)) is not None},
        seconds=_mean(row.get("seconds") for row in rows),
        retention=_retention(rows),
    )


def _envelope(name: str, rows: Sequence[Row]) -> Bounds | None:
    ends = [row.get("intervals", {}).get(name) for row in rows]
    known = [(float(end[0]), float(end[1])) for end in ends if end is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(rows) else None


def _retention(rows: Sequence[Row]) -> list[tuple[int, dict[str, Value]]]:
    """Mean over the seeds that were measured after as many edits."""
    steps: dict[int, list[Mapping[str, Value]]] = {}
    for row in rows:
        for step in row.get("retention") or ():
            steps.setdefault(step["edits"], []).append(step["figures"])
    return [
        (edits, {name: _mean(one.get(name) for one in found) for name in found[0]})
        for edits, found in sorted(steps.items())
    ]


def _mean(values: Iterable[Any]) -> Value:
    """Over the seeds; None as soon as one of them has none, since the others would not speak for it."""
    found = list(values)
    return None if None in found or not found else math.fsum(found) / len(found)


def _rank(entry: Entry) -> tuple[float, bool]:
    """By quality; of equals those last in whom a figure that should be low is no finite number."""
    quality = -math.inf if entry.quality is None or math.isnan(entry.quality) else entry.quality
    low = [entry.figures.get(name) for name, metric in METRICS.items() if metric.better == "lower"]
    return quality, all(value is None or math.isfinite(value) for value in low)


def _perplexity(figures: Mapping[str, Value]) -> Value:
    value, nats = figures.get("perplexity"), figures.get("log_perplexity")
    return math.exp(min(nats, 700.0)) if value is None and nats is not None else value
