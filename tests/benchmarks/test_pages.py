"""What the pages claim has a file behind it, and the generated ones are of the files that lie there."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import common, matrix_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = sorted(path.name for path in common.RESULTS.iterdir() if path.is_dir())
MEASUREMENTS = import_module("benchmarks.__main__").MEASUREMENTS


def named(text: str) -> Iterator[str]:
    """Every result that a page names, one for each word in braces."""
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w\-*{{}}, ./]+)`", text):
        head, brace, rest = name.partition("{")
        words, _, tail = rest.partition("}")
        yield from (head + word.strip() + tail for word in words.split(",")) if brace else [name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_result_that_a_page_names_is_there(page: Path) -> None:
    for name in named(page.read_text(encoding="utf-8")):
        bare = name.removesuffix(".json")
        there = [*common.RESULTS.glob(f"{bare}.json"), *common.RESULTS.glob(bare)]
        assert there or bare in MEASUREMENTS, f"{page.name} names {name}, which is not among the results"


def test_names_are_found_with_their_braces_and_stars() -> None:
    text = "so (`matrix/*`) it `eamet/option_{a, b}.json` is, `not/this`, `tuning/wise`"
    assert list(named(text)) == ["matrix/*", "eamet/option_a.json", "eamet/option_b.json", "tuning/wise"]


def test_the_page_of_results_is_what_the_rows_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.svg")}
    page = matrix_page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(matrix_page, "PAGE", tmp_path / "results.md")
    matrix_page.write()
    cure = "the page is older than its rows; run `python -m benchmarks` to write it anew"
    assert matrix_page.PAGE.read_text(encoding="utf-8") == page, cure
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "results").iterdir()} == kept, cure
