"""`retcon demo` from the facts to the report, on a tiny model."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.conftest import Retcon

from retcon.methods import MEMIT, MEMITConfig
from retcon.requests import load_cases

FACTS = Path(__file__).parents[2] / "examples" / "facts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quick(MEMITConfig):
    layers: tuple[int, ...] | None = (1, 2)
    statistics: str = "none"
    templates: int = 1
    steps: int = 4


def test_the_facts_are_ten_and_complete() -> None:
    loaded = load_cases(FACTS)
    assert (len(loaded.items), loaded.warnings) == (10, [])
    for case in loaded.items:
        assert case.edit.old is not None
        assert len(case.paraphrases) == len(case.neighbours) == 2


def test_the_demo_edits_measures_and_takes_back(
    retcon: Retcon, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MEMIT, "Config", Quick)
    out = tmp_path / "demo"
    said = retcon("demo", "--model", model, "--facts", FACTS, "--out", out, "--json")
    assert said.code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "card.md",
        "patch",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert (said.json["n"], said.json["undone"], len(said.json["answers"])) == (10, True, 10)
    for words in ("To undo", "retcon ask --patch", "The Eiffel Tower"):
        assert words in said.err


def test_without_facts_it_says_where_to_run(retcon: Retcon, tmp_path: Path) -> None:
    said = retcon("demo", "--facts", tmp_path / "none.jsonl")
    assert (said.code, "run the demo in the project's folder" in said.err) == (2, True)
