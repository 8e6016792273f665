"""The rows of one setting on disk, and the table that is made of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retcon.bench.rows import Rows
from retcon.bench.words import markdown, number
from retcon.evaluate.record import restored

__all__ = ["FIGURES", "brief", "laid_out", "rows", "table"]

FIGURES = {
    "reliability": "reliability",
    "generalization": "generalization",
    "locality": "locality",
    "retain_drift": "drift",
    "refusal_rate": "refusal rate",
    "refusal_quality": "refusal quality",
    "over_refusal": "over-refusal",
    "leakage": "leakage",
    "model_utility": "utility",
    "forget_quality": "forget quality",
    "privleak": "privleak",
}
"""Figures of a judge's report that the table shows, where any row has them, with their titles."""
_BRIEF = ("leakage", "generalization", "locality", "refusal_rate", "model_utility", "forget_quality")
"""Those of them that a terminal has room for: what still comes out, also when asked otherwise, and what it cost."""


def rows(folder: Path, setting: str) -> Rows:
    """The rows of a folder: those of one setting, of one model, corpus and way of teaching.

    Raises:
        RetconError: the rows there are of another setting.
    """
    return Rows(folder, table=table, setting=setting, of_another="rows of another model, corpus or way of teaching")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    return markdown(*laid_out(rows))


def laid_out(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table; a figure that no row has has no column, and a row that could not be says why."""
    rows = [restored(row) for row in rows]
    heads, cells = _laid_out(rows, FIGURES)
    more = [[number(row.get("peak_memory_mb"), 0), _remark(row)] for row in rows]
    return [*heads, "peak MB", "remark"], [[*line, *rest] for line, rest in zip(cells, more, strict=True)]


def brief(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads and cells of a table that a terminal has room for, and the remarks on its rows."""
    rows = [restored(row) for row in rows]
    remarks = [f"{row['row']}: {_remark(row)}" for row in rows if _remark(row)]
    return *_laid_out(rows, _BRIEF), remarks


def _laid_out(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    shown = [name for name in names if any(_value(row, name) is not None for row in rows)]
    cells = [
        [
            row["row"],
            *(number(_value(row, name)) for name in shown),
            number((row.get("seconds") or {}).get("edit"), 1),
        ]
        for row in rows
    ]
    return ["forgets by", *(FIGURES[name] for name in shown), "seconds"], cells


def _remark(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "na" in row:
        return str(row["na"])
    training = row.get("training") or {}
    if training.get("best") == 0:
        return f"changes nothing: {training.get('stopped')}"
    told = row.get("forget") or {}
    named, merge = told.get("targets"), told.get("merge") or {}
    remarks = [f"counts as {named}"] if named and named != told.get("targets_asked") else []
    if merge.get("queries", 1) != 1:
        nothing = "" if max(merge["sizes"], default=1) > 1 else ": nothing merged"
        remarks.append(f"{told['questions']} questions in {told['edits']} edits{nothing}")
    return "; ".join(remarks)


def _value(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of a row; of one that is a record, its `value` or `p`."""
    found = (row.get("metrics") or {}).get(name)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("value", "p", "share") if key in found), None)
    return float(found) if isinstance(found, int | float) else None
