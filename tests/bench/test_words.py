"""Names, numbers and Markdown."""

from retcon.bench.words import as_json, markdown


def test_a_cell_of_a_table_stays_one_cell() -> None:
    assert markdown(["a", "b"], [["x | y", "two\nlines"]]) == "| a | b |\n| --- | --- |\n| x / y | two lines |\n"


def test_options_are_told_in_json_types() -> None:
    assert as_json({"layers": (1, 2), "ridge": 0.1}) == {"layers": [1, 2], "ridge": 0.1}
