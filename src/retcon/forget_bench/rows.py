"""The rows of a bench on disk, one JSON object a line, and the table that is made of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retcon.errors import RetconError
from retcon.storage import new_file

__all__ = ["FIGURES", "Rows", "laid_out", "table"]

FIGURES = {
    "reliability": "reliability",
    "generalization": "generalization",
    "locality": "locality",
    "refusal_rate": "refusal rate",
    "refusal_quality": "refusal quality",
    "over_refusal": "over-refusal",
    "leakage": "leakage",
    "model_utility": "utility",
    "forget_quality": "forget quality",
    "privleak": "privleak",
}
"""Figures of a judge's report that the table shows, where any row has them, with their titles."""


class Rows:
    """What is done of a bench; each row is written as soon as it is there, so that a run that was stopped loses one.

    A folder holds the rows of one setting: of one model, corpus and way of teaching.
    """

    def __init__(self, folder: Path, setting: str) -> None:
        """Read what is there.

        Raises:
            RetconError: the rows there are of another setting.
        """
        self.path, self.table = folder / "rows.jsonl", folder / "rows.md"
        self._setting = setting
        self._rows = {row["key"]: row for row in _read(self.path)}
        if any(row["setting"] != setting for row in self._rows.values()):
            raise RetconError(
                f"{folder} holds rows of another model, corpus or way of teaching; name another --out, or give the "
                "command that made it"
            )

    def done(self, key: str) -> dict[str, Any] | None:
        """The row of a key; None where there is none, or one that failed and is to be tried again."""
        row = self._rows.get(key)
        return None if row is None or "failed" in row else row

    def put(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a row, in place of an older one of its key, and write all rows and their table."""
        made = {"key": key, "setting": self._setting, **row}
        self._rows[key] = made
        with new_file(self.path) as path:
            lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in self._rows.values()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with new_file(self.table) as path:
            path.write_text(table(self._rows.values()), encoding="utf-8")
        return made


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        RetconError: a line is no row.
    """
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [row | {"key": str(row["key"]), "setting": str(row["setting"])} for row in rows]
    except (ValueError, KeyError, TypeError):
        raise RetconError(f"{path} is no file of rows; name another --out, or remove it") from None


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    heads, cells = laid_out(rows)
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join("| " + " | ".join(map(_safe, line)) + " |\n" for line in lines)


def laid_out(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table; a figure that no row has has no column, and a row that could not be says why."""
    rows = list(rows)
    shown = [name for name in FIGURES if any(_value(row, name) is not None for row in rows)]
    heads = ["forgets by", *(FIGURES[name] for name in shown), "seconds", "peak MB", "remark"]
    cells = []
    for row in rows:
        seconds = _number((row.get("seconds") or {}).get("edit"), 1)
        figures = [_number(_value(row, name)) for name in shown]
        cells.append([row["row"], *figures, seconds, _number(row.get("peak_memory_mb"), 0), _remark(row)])
    return heads, cells


def _remark(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "na" in row:
        return str(row["na"])
    training = row.get("training") or {}
    if training.get("best") == 0:
        return f"changes nothing: {training.get('stopped')}"
    told = row.get("forget") or {}
    named = told.get("targets")
    return f"counts as {named}" if named and named != told.get("targets_asked") else ""


def _value(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of a row; of one that is a record, its `value` or `p`."""
    found = (row.get("metrics") or {}).get(name)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("value", "p", "share") if key in found), None)
    return float(found) if isinstance(found, int | float) else None


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if digits == 3 and 0 < abs(value) < 0.0005 else f"{value:.{digits}f}"


def _safe(cell: str) -> str:
    return cell.replace("|", "/").replace("\n", " ")
