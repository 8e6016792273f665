"""The table of sets, and the page that shows it."""

from collections import Counter
from pathlib import Path

from retcon.sets import READERS, SETS
from retcon.sets.builtin import compose, tables
from retcon.sets.table import markdown

PAGE = Path(__file__).parents[2] / "docs" / "sets.md"


def test_the_names_are_these() -> None:
    assert list(SETS) == [
        "builtin",
        "counterfact",
        "zsre",
        "wiki_recent",
        "wiki_counterfact",
        "mquake",
        "tofu",
        "pistol",
        "factual",
        "lume",
        "pararel",
    ]


def test_every_set_tells_whose_it_is_and_where_it_is() -> None:
    for name, info in SETS.items():
        assert name == info.name
        assert info.kind in ("edit", "forget", "facts")
        assert info.licence
        assert info.citation.startswith("@")
        assert info.citation.count("{") == info.citation.count("}")
        assert info.neighbour
        assert set(info.readers) <= set(READERS)
        assert set(info.records) <= set(info.files)
        if info.hub:
            assert set(info.hub.files) <= set(info.files)
        if name != "builtin":
            assert info.url.startswith("https://")
            assert info.files
            assert info.readers


def test_factual_names_both_of_its_sources() -> None:
    factual = SETS["factual"]
    assert factual.licence == "MIT (TOFU), ODC-By 1.0 (PISTOL)"
    assert SETS["tofu"].citation in factual.citation
    assert SETS["pistol"].citation in factual.citation


def test_every_reader_is_of_some_set() -> None:
    assert {name for info in SETS.values() for name in info.readers} == set(READERS)


def test_the_page_shows_the_table_as_it_is() -> None:
    assert markdown() in PAGE.read_text("utf-8"), "paste retcon.sets.table.markdown() into docs/sets.md"


def test_the_page_tells_the_counts_as_they_are() -> None:
    cases = compose()
    counts = Counter(case.edit.relation for case in cases)
    hops = sum(len(case.portability) for case in cases)
    told = f"{len(cases):,} cases of {len(counts)} relations, {hops} two-hop questions: "
    told += ", ".join(f"{name} {counts[name]}" for name in tables().relations) + "."
    assert told in " ".join(PAGE.read_text("utf-8").split())
