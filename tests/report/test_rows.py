"""Rows of a benchmark, and what their methods are called."""

from pathlib import Path
from typing import Any

from retcon.report.rows import boards, called, named, options


def row(method: str, free: dict[str, float], **given: Any) -> dict[str, Any]:
    told = {"row": f"{method} {given}", "method": method, "dataset": "zsre", "edits": 10, "n": 10, "options": given}
    return told | {"metrics": {"efficacy_gen": 1.0} | free}


def test_a_file_among_options_is_told_by_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    assert named({"statistics": str(tmp_path / "text.txt")}) == ["statistics=text.txt"]
    assert named({"statistics": "none"}) == ["statistics=none"]


def test_options_are_named_only_where_the_rows_of_a_method_differ_in_them() -> None:
    rows = [row("rome", {}, steps=7, layer=3), row("memit", {}, steps=7), row("memit", {}, steps=9)]
    assert called(rows) == ["rome", "memit, steps=7", "memit, steps=9"]
    (board,) = boards(rows)
    assert {entry.method for entry in board.entries} == set(called(rows))
    assert options(rows) == {"steps=7": ["rome", "memit"], "layer=3": ["rome"], "steps=9": ["memit"]}


def test_rows_of_a_version_without_the_free_running_score_are_ordered_by_it_too() -> None:
    old = row("old", {"generalization_gen": 0.6, "specificity_gen": 0.45, "score": 0.2})
    new = row("new", {"generalization_gen": 0.1, "specificity_gen": 0.9, "score": 0.3, "score_gen": 0.24})
    (board,) = boards([new, old])
    assert [(entry.method, entry.ranked_by) for entry in board.entries] == [("old", "score_gen"), ("new", "score_gen")]
    assert board.entries[0].quality == 3 / (1 + 1 / 0.6 + 1 / 0.45)
