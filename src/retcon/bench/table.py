"""Rows as tables: a page of them that documentation takes as it is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retcon.bench.cells import short
from retcon.bench.words import markdown, number
from retcon.evaluate.record import restored, scored
from retcon.metrics import METRICS
from retcon.report.rows import called, options

__all__ = ["latest", "page"]

Row = Mapping[str, Any]

_GROUP = ("dataset", "edits", "mode", "chunk", "seed", "model")
"""What the rows of one table have in common."""


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of rows of one name, as an older version or another sample left them, the last; in the order of first rows.
    Figures that are no finite numbers are such numbers again."""
    return [scored(restored(row)) for row in {row["row"]: row for row in rows}.values()]


def page(rows: Sequence[Row], *, title: str = "Bench", command: str = "") -> str:
    """The rows as a page in Markdown, a table for each set, number of edits, seed and model.

    Args:
        rows: of `rows.jsonl`.
        title: the page's heading.
        command: what writes the page, for its readers.
    """
    by = f" by `{command}`" if command else ""
    parts = [
        f"# {title}\n",
        f"Generated{by} from the rows of `retcon bench`. Every figure is that of the final model, with all edits of its"
        " cell in force; 95% bootstrap intervals in brackets, drawn by whole subjects. `s an edit` leaves statistics of"
        " keys out, and is not told where targets came from a cache.\n",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in latest(rows):
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    for group in groups.values():
        parts += _section(group)
    return "\n".join(parts)


def _section(group: Sequence[Row]) -> list[str]:
    """A heading, the table, and where it comes from."""
    first = group[0]
    steps = "one batch" if first["chunk"] is None else f"chunks of {first['chunk']}"
    where = f"{short(first['dataset'])}, N = {first['edits']}, {steps}, seed {first['seed']}, {short(first['model'])}"
    shown, kept = _figures(group), _retained(group)
    heads = ["method", *shown, *kept, "s an edit", "peak MB", "patch MB", "remark"]
    lines = []
    if (judged := next((row for row in group if row.get("before")), None)) is not None:
        bare = [_bounded(judged, "before", "before_intervals", name) for name in shown]
        lines.append(["*unedited*", *bare, *["–"] * (len(kept) + 3), ""])
    for row, method in zip(group, called(group), strict=True):
        figures = [_bounded(row, "metrics", "intervals", name) for name in shown]
        figures += [number(_retention(row, name)) for name in kept]
        size = (row.get("patch") or {}).get("bytes")
        lines.append([method, *figures, *_cost(row), number(size and size / 2**20, 2), _remark(row)])
    return [f"## {where}\n", markdown(heads, lines), *_origin(group)]


def _origin(group: Sequence[Row]) -> list[str]:
    """Data, command, versions and machine of a table's rows."""
    told = [row["provenance"] for row in group if "provenance" in row]
    if not told:
        return []
    notes = []
    judged = {(row["judged"], row["provenance"]["data"]["cases_sha256"]) for row in group if "provenance" in row}
    if len(judged) > 1:
        notes = ["**These rows were not all judged on the same cases**: do not compare them.\n"]
    first = next(row for row in group if "provenance" in row)
    data, versions, hardware = (told[-1][name] for name in ("data", "versions", "hardware"))
    made = dict.fromkeys(one["command"] for one in told if one["command"])
    licence = f", {data['licence']}" if data.get("licence") else ""
    words = [
        f"{first['judged']} of {first['n']} cases judged; SHA-256 of the data {data['sha256'][:16]}{licence}.",
        *(f"Made by `{command}`." for command in made),
        *(f"With `{option}`: {', '.join(having)}." for option, having in options(group).items()),
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {hardware['accelerator'] or hardware['cpu']}, {hardware['threads']} threads.",
    ]
    return [*notes, " ".join(words) + "\n"]


def _figures(rows: Sequence[Row]) -> list[str]:
    return [name for name in METRICS if any(_value(row, name) is not None for row in rows)]


def _retained(rows: Sequence[Row]) -> list[str]:
    """Columns of a fold: what each chunk's own step gave, and what is left of it at the end."""
    return ["immediate", "final"] if any("retention" in row for row in rows) else []


def _retention(row: Row, name: str) -> float | None:
    found: float | None = (row.get("retention") or {}).get(name)
    return found


def _value(row: Row, name: str) -> float | None:
    found: float | None = (row.get("metrics") or {}).get(name)
    return found


def _bounded(row: Row, figures: str, bounds: str, name: str) -> str:
    """A figure with its interval."""
    value, interval = (row.get(figures) or {}).get(name), (row.get(bounds) or {}).get(name)
    return number(value) + ("" if interval is None else f" [{number(interval[0])}, {number(interval[1])}]")


def _cost(row: Row) -> list[str]:
    return [number(row.get("seconds_per_edit"), 2), number(row.get("peak_memory_mb"), 0)]


def _remark(row: Row) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "na" in row:
        return str(row["na"])
    told = []
    if row["n"] != row["edits"]:
        told.append(f"{row['n']} edits, there are no more")
    if row["targets_cached"]:
        told.append(f"{row['targets_cached']} targets from a cache")
    return "; ".join(told)
