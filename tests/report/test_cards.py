"""The model card with what was measured."""

import dataclasses
from pathlib import Path

import pytest
from tests.report import samples

from retcon.errors import RetconError
from retcon.evaluate import ForgetReport, Report
from retcon.patch import Patch
from retcon.patch.card import Held
from retcon.report import card, cards, forgetting, write


def on(report: Report, patch: Patch) -> Report:
    named = {"patch": report.provenance["patch"] | {"id": patch.id}}
    return dataclasses.replace(report, provenance=report.provenance | named)


def of_forgetting(patch: Patch) -> ForgetReport:
    report = samples.forgetting()
    return dataclasses.replace(report, provenance=report.provenance | {"patch": {"id": patch.id, "method": "grace"}})


def test_a_card_tells_base_edits_figures_harms_loading_and_undoing() -> None:
    patch = samples.patch()
    text = card(patch, on(samples.edits(), patch))
    parts = [
        "base_model: smollm2-135m", "# license:", "98 of 100 facts are held", "## Figures", "0.950 to 1.000",
        "## Harms", "0.180 to 0.310", "- Big Ben is in **Rome** (it was: London)", "## How to load", "patch.on(model)",
        "patch.merge(model)", "## How to undo", "patch.unmerge(model)", "memit: 1 edit, seed 0", "## Licence",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_card_on_forgetting_tells_counts_and_ids_only() -> None:
    patch = samples.memory()
    text = card(patch, of_forgetting(patch))
    assert "5 questions in 2 edits" in text
    assert "`0000000000000001`" in text
    assert "**Warning:** Access control" in text
    assert "can be neither merged nor exported" in text
    for secret in ("lighthouse", "author's father", "topic", "/home/me"):
        assert secret not in text


def test_a_report_on_another_patch_is_refused() -> None:
    with pytest.raises(RetconError, match="the report is on patch 0123456789abcdef, not on"):
        card(samples.patch(), samples.edits())


def test_a_card_without_a_report_says_so() -> None:
    assert "was not measured here" in card(samples.patch())


def test_reports_of_both_kinds_are_read_and_others_refused(tmp_path: Path) -> None:
    write(samples.edits(), tmp_path / "a")
    forgetting.write(samples.forgetting(), tmp_path / "b")
    assert isinstance(cards.read(tmp_path / "a" / "report.json"), Report)
    assert isinstance(cards.read(tmp_path / "b" / "report.json"), ForgetReport)
    for name, text in (("none.json", None), ("list.json", "[1]"), ("other.json", '{"x": 1}'), ("bad.json", "{")):
        path = tmp_path / name
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(RetconError, match=r"is no report .*; give the report.json"):
            cards.read(path)


def test_an_evaluation_of_a_patch_writes_its_card(tmp_path: Path) -> None:
    patch = samples.patch()
    paths = write(on(samples.edits(), patch), tmp_path, patch=patch)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html", "card.md"]
    assert "Where the edits went" in paths[2].read_text(encoding="utf-8")
    path = cards.write(patch, on(samples.edits(), patch), tmp_path, held=Held(kind="adapter", rank=3))
    assert path.name == "README.md"
    assert "`--max-lora-rank 8`" in path.read_text(encoding="utf-8")
