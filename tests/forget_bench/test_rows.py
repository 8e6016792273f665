"""Rows on disk, and their table."""

from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RetconError
from retcon.forget_bench.rows import brief, laid_out, rows, table

ROW: dict[str, Any] = {
    "row": "memit",
    "metrics": {"reliability": 0.91234, "locality": None},
    "seconds": {"edit": 61.25},
}


def test_a_folder_holds_the_rows_of_one_setting_and_their_table(tmp_path: Path) -> None:
    rows(tmp_path, "s").put("a", ROW)
    assert rows(tmp_path, "s").done("a") == {"key": "a", "setting": "s", **ROW}
    assert (tmp_path / "rows.md").read_text(encoding="utf-8") == table([ROW])
    with pytest.raises(RetconError, match="rows of another model, corpus or way of teaching"):
        rows(tmp_path, "t")


def test_the_table_shows_figures_that_there_are_and_says_why_others_are_not() -> None:
    found: list[dict[str, Any]] = [
        ROW,
        {"row": "grace, 4 merged", "na": "n/a: grace: no | shift"},
        {"row": "rome", "failed": "RuntimeError: it\nburst"},
        {"row": "wise", "metrics": {"forget_quality": {"p": 1.5e-9, "distance": 1.0}}, "peak_memory_mb": 812.4,
         "forget": {"targets": "template", "targets_asked": "self_improved"}},
        {"row": "memit, 4 merged", "forget": {"questions": 3, "edits": 3, "merge": {"queries": 4, "sizes": [1, 1, 1]}}},
        {"row": "ece, 4 merged", "forget": {"questions": 5, "edits": 2, "merge": {"queries": 4, "sizes": [4, 1]}}},
    ]  # fmt: skip
    heads, cells = laid_out(found)
    assert heads == ["forgets by", "reliability", "forget quality", "seconds", "peak MB", "remark"]
    assert cells[0] == ["memit", "0.912", "–", "61.2", "–", ""]
    assert cells[3] == ["wise", "–", "1.5e-09", "–", "812", "counts as template"]
    lines = table(found).splitlines()
    assert len(lines) == 8
    assert cells[4][-1] == "3 questions in 3 edits: nothing merged"
    assert cells[5][-1] == "5 questions in 2 edits"
    assert laid_out([ROW | {"training": {"best": 0, "stopped": "it harms"}}])[1][0][-1] == "changes nothing: it harms"
    assert all(line.count("|") == len(heads) + 1 for line in lines)
    assert "failed: RuntimeError: it burst" in lines[4]


def test_a_terminal_gets_the_figures_that_decide_and_remarks_under_them() -> None:
    more = {"leakage": 0.1, "locality": 1.0, "privleak": 3.0}
    heads, cells, remarks = brief([ROW, {"row": "ece", "metrics": more}, {"row": "rome", "failed": "it burst"}])
    assert heads == ["forgets by", "leakage", "locality", "seconds"]
    assert cells == [["memit", "–", "–", "61.2"], ["ece", "0.100", "1.000", "–"], ["rome", "–", "–", "–"]]
    assert remarks == ["rome: failed: it burst"]
