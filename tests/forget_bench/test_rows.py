"""Rows on disk, and their table."""

from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RetconError
from retcon.forget_bench.rows import Rows, laid_out, table

ROW: dict[str, Any] = {
    "row": "memit",
    "metrics": {"reliability": 0.91234, "locality": None},
    "seconds": {"edit": 61.25},
}


def test_rows_are_kept_as_they_come_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path, "s")
    assert rows.done("a") is None
    rows.put("a", ROW)
    rows.put("b", {"row": "rome", "failed": "it burst"})
    again = Rows(tmp_path, "s")
    assert again.done("a") == {"key": "a", "setting": "s", **ROW}
    assert again.done("b") is None
    again.put("b", {"row": "rome", "na": "n/a: rome: no"})
    assert Rows(tmp_path, "s").done("b") is not None
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert (tmp_path / "rows.md").read_text(encoding="utf-8") == table(
        [{"key": "a", "setting": "s", **ROW}, {"row": "rome", "na": "n/a: rome: no"}]
    )


def test_rows_of_another_setting_and_other_files_are_refused(tmp_path: Path) -> None:
    Rows(tmp_path, "s").put("a", ROW)
    with pytest.raises(RetconError, match="rows of another model, corpus or way of teaching"):
        Rows(tmp_path, "t")
    for text in ("no json\n", '{"row": 1}\n', "[]\n"):
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(RetconError, match="is no file of rows"):
            Rows(tmp_path, "s")


def test_the_table_shows_figures_that_there_are_and_says_why_others_are_not() -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        {"row": "grace, 4 merged", "na": "n/a: grace: no | shift"},
        {"row": "rome", "failed": "RuntimeError: it\nburst"},
        {"row": "wise", "metrics": {"forget_quality": {"p": 1.5e-9, "distance": 1.0}}, "peak_memory_mb": 812.4,
         "forget": {"targets": "template", "targets_asked": "self_improved"}},
    ]  # fmt: skip
    heads, cells = laid_out(rows)
    assert heads == ["forgets by", "reliability", "forget quality", "seconds", "peak MB", "remark"]
    assert cells[0] == ["memit", "0.912", "–", "61.2", "–", ""]
    assert cells[3] == ["wise", "–", "1.5e-09", "–", "812", "counts as template"]
    lines = table(rows).splitlines()
    assert len(lines) == 6
    assert laid_out([ROW | {"training": {"best": 0, "stopped": "it harms"}}])[1][0][-1] == "changes nothing: it harms"
    assert all(line.count("|") == len(heads) + 1 for line in lines)
    assert "failed: RuntimeError: it burst" in lines[4]
