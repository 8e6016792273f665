"""Rows on disk."""

from pathlib import Path

import pytest

from retcon.bench.rows import Rows, read
from retcon.errors import RetconError


def test_rows_are_kept_as_they_come_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path, table=lambda kept: f"{len(kept)} rows")
    assert rows.done("a") is None
    rows.put("a", {"row": "memit"})
    rows.put("b", {"row": "rome", "failed": "it burst"})
    again = Rows(tmp_path)
    assert again.done("a") == {"key": "a", "row": "memit"}
    assert again.done("b") is None
    assert [row["key"] for row in again.all()] == ["a", "b"]
    again.put("b", {"row": "rome", "na": "n/a: rome: no"})
    assert Rows(tmp_path).done("b") is not None
    assert len((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert (tmp_path / "rows.md").read_text(encoding="utf-8") == "2 rows"


def test_a_row_whose_files_are_gone_is_made_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path, intact=lambda row: (tmp_path / row["cases"]).is_file())
    rows.put("a", {"cases": "a.txt"})
    assert rows.done("a") is None
    (tmp_path / "a.txt").touch()
    assert rows.done("a") is not None


def test_rows_that_another_process_has_added_stay(tmp_path: Path) -> None:
    first, second = Rows(tmp_path), Rows(tmp_path)
    first.put("a", {"n": 1})
    second.put("b", {"n": 2})
    assert list(read(tmp_path / "rows.jsonl")) == ["a", "b"]
    assert [row["key"] for row in second.all()] == ["a", "b"]


def test_rows_of_another_setting_and_other_files_are_refused(tmp_path: Path) -> None:
    Rows(tmp_path, setting="s").put("a", {})
    assert read(tmp_path / "rows.jsonl")["a"]["setting"] == "s"
    for setting in ("t", None):
        with pytest.raises(RetconError, match="rows of another bench; name another --out"):
            Rows(tmp_path, setting=setting, of_another="rows of another bench")
    for text in ("no json\n", '{"row": 1}\n', "[]\n"):
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(RetconError, match="is no file of rows"):
            Rows(tmp_path)
