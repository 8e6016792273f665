"""The rows of a bench on disk, one JSON object a line; a bench that was stopped goes on from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retcon.errors import RetconError
from retcon.storage import new_file

__all__ = ["Row", "Rows", "read"]

Row = dict[str, Any]


class Rows:
    """What is done of a bench; each row is written as soon as it is there, so that a run that was stopped loses one."""

    def __init__(
        self,
        folder: Path,
        *,
        table: Callable[[Sequence[Row]], str] | None = None,
        setting: str | None = None,
        of_another: str = "rows of another kind",
        intact: Callable[[Row], bool] = lambda _: True,
    ) -> None:
        """Read what is there.

        Args:
            folder: holds `rows.jsonl` and, with `table`, `rows.md`.
            table: the rows as a page, which is written anew with each row.
            setting: hash of what all rows have in common; None where each stands for itself.
            of_another: what rows of another setting are called.
            intact: whether the files that a row speaks of are still there; a row without them is made again.

        Raises:
            RetconError: the file is no file of rows, or they are of another setting.
        """
        self.path, self._page = folder / "rows.jsonl", folder / "rows.md"
        self._table, self._setting, self._intact = table, setting, intact
        self._rows = read(self.path)
        if any(row.get("setting") != setting for row in self._rows.values()):
            raise RetconError(f"{folder} holds {of_another}; name another --out, or give the command that made it")

    def all(self) -> list[Row]:
        """Every row, those that failed too."""
        return list(self._rows.values())

    def done(self, key: str) -> Row | None:
        """The row of a key; None where there is none, or one that failed or lost its files and is to be tried again."""
        row = self._rows.get(key)
        return None if row is None or "failed" in row or not self._intact(row) else row

    def put(self, key: str, row: Mapping[str, Any]) -> Row:
        """Keep a row, in place of an older one of its key, and write all rows and their table.

        Rows that another process has added meanwhile are kept.
        """
        made = {"key": key, **({} if self._setting is None else {"setting": self._setting}), **row}
        self._rows = read(self.path) | {key: made}
        with new_file(self.path) as path:
            lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in self._rows.values()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if self._table is not None:
            with new_file(self._page) as path:
                path.write_text(self._table(self.all()), encoding="utf-8")
        return made


def read(path: Path) -> dict[str, Row]:
    """The rows of a file by their keys; none where there is no file.

    Raises:
        RetconError: a line is no row.
    """
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {str(row["key"]): row | {"key": str(row["key"])} for row in rows}
    except (ValueError, KeyError, TypeError):
        raise RetconError(f"{path} is no file of rows; name another folder, or remove it") from None
