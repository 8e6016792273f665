"""Reports for people."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.report import samples

from retcon.evaluate import Report
from retcon.report import html, markdown, table, write


def case(subject: str, efficacy: float, before: str | None, after: str | None, **more: Any) -> dict[str, Any]:
    return {
        "id": subject,
        "prompt": f"{subject} is in",
        "subject": subject,
        "target": "Rome",
        "old": "Paris",
        "metrics": {"efficacy": efficacy},
        "before": {"efficacy": 0.0},
        "answers": {"before": before, "after": after},
        "missed": [],
        "changed": [],
        **more,
    }


REPORT = Report(
    n=3,
    metrics={"efficacy": 0.667, "generalization": None, "specificity": 0.95, "log_perplexity": 3.1},
    before={"efficacy": 0.0, "generalization": None, "specificity": 1.0, "log_perplexity": 3.1},
    seconds=4.2,
    intervals={"efficacy": (0.333, 1.0)},
    provenance={
        "model": {"name": "tiny", "dtype": "float32"},
        "patch": {"id": "abcd", "parent": None, "method": "memit", "edits": 3},
        "cases": {"scored": 3, "given": 3, "sampled": False},
        "prefixes": {"texts": ["It rained", "<b>She"]},
    },
    cases=[
        case("The good one", 1.0, "Paris, of course", "Rome, and"),
        case(
            "The <b>bad</b> | one",
            0.0,
            "Paris",
            "Paris [red]still[/red]",
            missed=["In which city?"],
            changed=[
                {"prompt": "Big Ben is in", "before": None, "after": None},
                {"prompt": "Lima is in", "before": "Peru", "after": ""},
            ],
        ),
        case("The one not asked", 1.0, None, None),
    ],
)
ALONE = replace(REPORT, metrics=REPORT.before, provenance={**REPORT.provenance, "patch": None})


def printed(report: Report, **options: Any) -> str:
    stream = StringIO()
    Console(file=stream, width=140, color_system=None).print(table(report, **options))
    return stream.getvalue()


RENDERINGS: dict[str, Callable[..., str]] = {"table": printed, "markdown": markdown, "html": html}


@pytest.mark.parametrize("kind", RENDERINGS)
def test_gains_stand_before_harms_and_failures_before_successes(kind: str) -> None:
    text = RENDERINGS[kind](REPORT).rpartition("</style>")[2]
    order = ["by memit", "What the edit achieved", "What it harmed", "bad", "good one", "Neighbours"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize("kind", RENDERINGS)
def test_figures_come_with_before_change_and_interval(kind: str) -> None:
    text = RENDERINGS[kind](REPORT)
    for part in ("0.667", "+0.667", "0.333 to 1.000", "0.950", "-0.050", "3.100"):
        assert part in text


@pytest.mark.parametrize("kind", RENDERINGS)
def test_answers_stand_side_by_side_and_what_was_not_asked_is_left_out(kind: str) -> None:
    text = RENDERINGS[kind](REPORT)
    assert "Paris, of course" in text
    assert "Rome, and" in text
    assert "not asked" not in text
    assert text.index("Lima is in") < text.index("Big Ben is in")
    assert "(nothing)" in text


@pytest.mark.parametrize("kind", RENDERINGS)
def test_a_missing_figure_is_a_dash_never_a_zero(kind: str) -> None:
    line = re.search(r"generalization.*?–", RENDERINGS[kind](REPORT), re.DOTALL)
    assert line is not None
    assert "0.000" not in line[0]


@pytest.mark.parametrize("kind", RENDERINGS)
def test_the_model_alone_has_one_column(kind: str) -> None:
    text = RENDERINGS[kind](ALONE)
    assert "tiny, unedited" in text
    assert "+0." not in text
    assert ">change<" not in text


@pytest.mark.parametrize("kind", RENDERINGS)
def test_an_empty_report_and_a_ruined_model_are_shown(kind: str) -> None:
    empty = Report(n=0, metrics={}, before={}, seconds=0.0)
    assert "0 cases" in RENDERINGS[kind](empty)
    metrics: dict[str, float | None] = {"perplexity": math.inf, "log_perplexity": math.nan, "fluency": 1e9}
    text = RENDERINGS[kind](replace(REPORT, metrics=metrics, cases=[]))
    assert "∞" in text
    assert "1e+09" in text


def test_markup_in_prompts_is_text_everywhere() -> None:
    assert "Paris [red]still[/red]" in printed(REPORT)
    assert "&lt;b&gt;bad&lt;/b&gt; | one" in html(REPORT)
    assert "<b>bad" not in html(REPORT) + markdown(REPORT)
    assert "<b>She" not in html(REPORT)
    row = next(line for line in markdown(REPORT).splitlines() if "bad" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 6  # five cells


def test_long_lists_are_cut_and_say_so() -> None:
    many = replace(REPORT, cases=[case(f"Place {n}", 1.0, "Paris", "Rome") for n in range(30)])
    assert "26 more" in printed(many, rows=4)
    assert "10 more" in markdown(many)
    assert html(many).count("is in</td>") == 30


class Page(HTMLParser):
    """Notes unclosed tags and everything a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or {"src", "href"} & {name for name, _ in attrs}:
            self.loaded.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [REPORT, ALONE])
def test_the_page_is_whole_and_loads_nothing(report: Report) -> None:
    page = Page()
    text = html(report)
    page.feed(text)
    assert page.open == []
    assert page.loaded == []
    assert "url(" not in text
    assert "@import" not in text


def test_a_run_in_batches_shows_what_is_left_of_earlier_ones() -> None:
    curves: dict[str, dict[str, list[float | None]]] = {
        "efficacy": {"edits": [1, 2, 3], "of_all": [1.0, None, 0.5]},
        "short": {"edits": [1], "of_all": [1.0]},
    }
    assert "What later edits did to earlier ones" in html(REPORT, curves=curves)
    assert "efficacy: 100% at 1, 50% at 3" in html(REPORT, curves=curves)
    assert "What later edits did" not in html(REPORT)


def test_a_patch_of_several_steps_shows_what_is_left_of_each() -> None:
    page = html(replace(REPORT, details=samples.DETAILS))
    assert "What later edits did to earlier ones" in page
    assert "efficacy_gen: 50% at 1, 100% at 2" in page
    assert "efficacy: " not in page.partition("What later edits did")[2].partition("</section>")[0]  # one step has it


def test_the_headline_stands_in_every_form() -> None:
    for render in RENDERINGS.values():
        assert "95% of neighbour answers stay the same" in " ".join(render(REPORT).split())


def test_changes_are_marked_in_the_page() -> None:
    marked = case("The moved one", 1.0, "in Paris on the Seine today", "in Rome on the Seine today")
    text = html(replace(REPORT, cases=[marked]))
    assert "in <del>Paris</del> on the Seine today" in text
    assert "in <ins>Rome</ins> on the Seine today" in text


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write(REPORT, tmp_path / "out")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert Report.from_json(paths[0].read_text(encoding="utf-8")).metrics == REPORT.metrics
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


def many(n: int, failed: int, said: int) -> Report:
    """So many cases, of which the first so many fail, and the first so many have answers."""
    cases = [
        case(f"Place {i}", 1.0, *(("Paris", "Rome") if i < said else (None, None)), metrics={
            "efficacy": 1.0, "efficacy_gen": float(i >= failed)
        })
        for i in range(n)
    ]  # fmt: skip
    return replace(REPORT, metrics={"efficacy": 1.0, "efficacy_gen": 1 - failed / n}, cases=cases)


@pytest.mark.parametrize("kind", RENDERINGS)
def test_how_many_fail_is_told_of_all_cases_and_not_of_those_that_are_shown(kind: str) -> None:
    for report, told in (
        (many(30, 12, 5), "12 of 30 cases are not as wanted; the first 5 are shown."),
        (many(30, 3, 5), "3 of 30 cases are not as wanted; 5 cases are shown, failures first."),
        (many(5, 1, 5), "1 of 5 cases is not as wanted."),
    ):
        assert told in RENDERINGS[kind](report)


@pytest.mark.parametrize("kind", RENDERINGS)
def test_what_is_no_finite_number_is_told_and_survives_the_file(kind: str) -> None:
    ruined = replace(REPORT, metrics={"perplexity": math.inf}, warnings=["perplexity is infinite; it has no interval"])
    text = RENDERINGS[kind](Report.from_json(ruined.to_json()))
    assert "∞" in text
    assert "perplexity is infinite" in text
