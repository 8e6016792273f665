"""Names, numbers and Markdown."""

from pathlib import Path

from retcon.bench.words import as_json, markdown, named


def test_a_cell_of_a_table_stays_one_cell() -> None:
    assert markdown(["a", "b"], [["x | y", "two\nlines"]]) == "| a | b |\n| --- | --- |\n| x / y | two lines |\n"


def test_options_are_told_in_json_types() -> None:
    assert as_json({"layers": (1, 2), "ridge": 0.1}) == {"layers": [1, 2], "ridge": 0.1}


def test_a_file_among_options_is_told_by_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    assert named({"statistics": str(tmp_path / "text.txt")}) == ["statistics=text.txt"]
    assert named({"statistics": "none"}) == ["statistics=none"]
