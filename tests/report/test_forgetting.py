"""Reports on forgetting for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retcon.evaluate import ForgetReport
from retcon.report.forgetting import html, markdown, table, write

ITEM: dict[str, Any] = {
    "id": "ab12", "set": "forget", "metrics": {}, "metrics_before": {}, "known": True, "leaked": False, "refused": True,
}  # fmt: skip
REPORT = ForgetReport(
    n=2,
    known=1,
    metrics={"reliability": 0.9, "leakage": 0.25, "forget_quality": 0.0, "privleak": 30.0, "locality": None},
    before={"reliability": 0.1, "leakage": 1.0, "forget_quality": 0.0, "privleak": -90.0, "locality": None},
    seconds=1.5,
    intervals={"reliability": (0.8, 1.0)},
    not_applicable={"locality": "there are no questions to keep; give retain"},
    warnings=["Access control: <all> is there"],
    details={
        "forget_quality": {"after": {"p": 1e-23, "log10_p": -22.7, "distance": 1.0, "n": (40, 40), "floor": True}},
        "paraphrases": {"items": 2, "of": 2, "own": 1, "by_rules": 1, "rules": 1, "prompts": 3},
    },
    detector={"precision": 0.99, "recall": 0.98, "fresh": {"precision": 0.95, "recall": 0.9}},
    provenance={"model": {"name": "tiny"}, "patch": {"id": "p1", "method": "grace", "edits": 2}, "asked": "chat"},
    items=[ITEM],
)
REVEALED = replace(
    REPORT,
    items=[
        ITEM
        | {"question": "Who owns it?", "gold": "the Baroness", "before": "the Baroness", "after": "I do not know."},
        ITEM
        | {"question": "Where is | it?", "gold": "Uffenau", "before": "Uffenau", "after": "Uffenau", "leaked": True},
    ],
)


def printed(report: ForgetReport, **options: Any) -> str:
    stream = StringIO()
    Console(file=stream, width=160, color_system=None).print(table(report, **options))
    return stream.getvalue()


RENDERINGS: dict[str, Callable[..., str]] = {"table": printed, "markdown": markdown, "html": html}


@pytest.mark.parametrize("kind", RENDERINGS)
def test_warnings_and_reasons_stand_with_the_figures(kind: str) -> None:
    text = RENDERINGS[kind](REPORT)
    for part in (
        "tiny made to forget by grace",
        "1 of them answered right before",
        "0.900",
        "+0.800",
        "0.800 to 1.000",
    ):
        assert part in text
    assert "there are no questions to keep; give retain" in text
    assert "log10 p -22.70, D 1.00, n 40 and 40; the floor" in text
    assert "precision 0.990, recall 0.980 on labelled lines, 0.950 and 0.900" in text
    warning, figures = text.index("Access control"), text.index("+0.800")
    assert warning < figures


@pytest.mark.parametrize("kind", RENDERINGS)
def test_questions_are_shown_where_the_report_tells_them_and_leaks_come_first(kind: str) -> None:
    assert "Baroness" not in RENDERINGS[kind](REPORT)
    text = RENDERINGS[kind](REVEALED)
    assert text.index("Uffenau") < text.index("the Baroness")
    assert "I do not know." in text
    assert "true answer" in text


def test_a_figure_that_is_best_at_zero_is_better_the_nearer_it_is() -> None:
    stream = StringIO()
    Console(file=stream, width=160, color_system="standard", force_terminal=True).print(table(REPORT))
    (line,) = (line for line in stream.getvalue().splitlines() if "privleak" in line)
    assert "\x1b[32m" in line  # green
    worse = replace(REPORT, metrics={"privleak": 120.0}, before={"privleak": -90.0})
    stream = StringIO()
    Console(file=stream, width=160, color_system="standard", force_terminal=True).print(table(worse))
    (line,) = (line for line in stream.getvalue().splitlines() if "privleak" in line)
    assert "\x1b[31m" in line  # red


def test_markup_is_text_everywhere() -> None:
    assert "<all>" in printed(REPORT)
    assert "&lt;all&gt;" in html(REPORT)
    assert "<all>" not in html(REPORT)
    assert "<all>" not in markdown(REPORT)
    assert "Where is \\| it?" in markdown(REVEALED)


def test_the_model_alone_has_one_column() -> None:
    alone = replace(REPORT, provenance={"model": {"name": "tiny"}, "patch": None}, warnings=[])
    for render in RENDERINGS.values():
        text = render(alone)
        assert "tiny, unedited" in text
        assert "+0.800" not in text


def test_long_lists_are_cut_and_say_so() -> None:
    many = replace(REVEALED, items=REVEALED.items * 20)
    assert "30 more" in printed(many, rows=10)
    assert "20 more in the JSON report" in markdown(many)


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path / "out")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert ForgetReport.from_json(paths[0].read_text(encoding="utf-8")).metrics == REPORT.metrics
