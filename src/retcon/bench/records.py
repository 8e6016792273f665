"""The cases of a cell on disk: one row a case, as Parquet where pyarrow is there, else as JSONL in gzip."""

import gzip
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retcon.errors import RetconError
from retcon.storage import new_file

__all__ = ["EXTRA", "load", "parquet", "save"]

EXTRA = "pip install 'retcon-lm[bench]'"

_TEXTS = ("id", "prompt", "subject", "target", "old")
_FIGURES = ("metrics", "before")
_LISTS = ("missed", "changed", "written", "portability", "not_finite", "before_not_finite")
"""Fields of a report's case; texts stand in columns, figures in one column each, lists and maps as JSON."""


def parquet() -> bool:
    """Whether cases are written as Parquet."""
    return find_spec("pyarrow") is not None


def save(cases: Sequence[dict[str, Any]], folder: Path, name: str, about: dict[str, Any]) -> Path:
    """Write the cases of a report, whole or not at all.

    Args:
        cases: as in `retcon.evaluate.Report.cases`.
        folder: where to.
        name: of the file, without its ending.
        about: what each row says beside: of which cell it is, in texts and whole numbers.

    Returns:
        The file: `NAME.parquet`, or `NAME.jsonl.gz`.
    """
    rows = [about | _flat(case) for case in cases]
    if parquet():
        path = folder / f"{name}.parquet"
        _write_parquet(rows, path)
        return path
    path = folder / f"{name}.jsonl.gz"
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with new_file(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same cases give the same bytes
    return path


def load(path: Path) -> list[dict[str, Any]]:
    """The cases of such a file, as a report has them.

    Raises:
        RetconError: it is not there, damaged, or Parquet without pyarrow.
    """
    if not path.is_file():
        raise RetconError(f"there is no file {path} with the cases of a row; run the bench again")
    if path.suffix == ".parquet":
        return [_whole(row) for row in _read_parquet(path)]
    try:
        text = gzip.decompress(path.read_bytes()).decode()
        return [_whole(json.loads(line)) for line in text.splitlines()]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise RetconError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} cannot be read ({type(error).__name__}); remove it and run the bench again"


def _flat(case: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: case[name] for name in _TEXTS}
    for name in _FIGURES:
        row |= {f"{name}.{figure}": value for figure, value in (case[name] or {}).items()}
    row |= {f"answer.{when}": said for when, said in case["answers"].items()}
    return row | {name: json.dumps(case[name], ensure_ascii=False) for name in _LISTS if name in case}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """The case of a flat row; what it says of its cell is left out."""
    case: dict[str, Any] = {name: row[name] for name in _TEXTS}
    case |= {"metrics": _within(row, "metrics"), "before": _within(row, "before") or None}
    lists = {name: json.loads(row[name]) for name in _LISTS if row.get(name)}
    return case | {"answers": _within(row, "answer")} | lists


def _within(row: dict[str, Any], group: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in row.items() if name.startswith(f"{group}.")}


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    def kind(name: str) -> Any:
        if name.partition(".")[0] in _FIGURES:
            return pyarrow.float64()
        return pyarrow.int64() if any(isinstance(row.get(name), int) for row in rows) else pyarrow.string()

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema([(name, kind(name)) for name in names]))
    with new_file(path) as temporary:
        files.write_table(table, temporary, compression="zstd")


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not parquet():
        raise RetconError(f"{path} is Parquet, which needs {EXTRA}")
    import pyarrow
    from pyarrow import parquet as files

    try:
        rows: list[dict[str, Any]] = files.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise RetconError(_damaged(path, error)) from None
    return rows
