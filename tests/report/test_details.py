"""What is behind the figures, as small tables."""

from dataclasses import replace
from html.parser import HTMLParser

from tests.report import samples

from retcon.evaluate import Report
from retcon.report import html, markdown
from retcon.report.details import tables

REPORT = replace(samples.edits(4), details=samples.DETAILS)
ALONE = replace(REPORT, provenance={**REPORT.provenance, "patch": None})


def shown(report: Report) -> dict[str, list[list[str]]]:
    return {small.title: [small.heads, *small.rows] for small in tables(report)}


def test_each_part_is_a_table_in_one_order_whatever_the_report_holds_first() -> None:
    assert shown(REPORT) == {
        "After text of each length": [
            ["tokens", "before", "after", "95% interval", "texts"],
            ["0", "0.020", "0.980", "0.950 to 1.000", "1"],
            ["200", "0.010", "0.410", "", "3"],
        ],
        "By how many facts a subject has": [
            ["figure", "1 fact", "3 facts"],
            ["facts", "5", "9"],
            ["subjects", "5", "3"],
            ["efficacy_gen", "1.000", "0.889"],
            ["all_efficacy_gen", "1.000", "0.667"],
        ],
        "By the step that made the edits": [
            ["step", "method", "edits", "judged", "efficacy_gen", "efficacy"],
            ["1", "memit", "50", "2", "0.500", "0.500 [0.000 to 1.000]"],
            ["2", "ece", "50", "2", "1.000", "–"],
        ],
        "What follows from the edits, by kind": [
            ["kind", "questions", "before", "after"],
            ["two-hop", "12", "0.083", "0.250"],
            ["alias <of>", "3", "–", "–"],
        ],
        "Neighbours that were known": [["neighbours", "answered right before the edits"], ["1,000", "37"]],
        "General ability": [
            ["task", "items", "before", "after", "change", "95% interval", "p", "scored"],
            ["arithmetic", "4", "0.750", "0.500", "-0.250", "-0.750 to 0.000", "0.620", "acc, by retcon"],
        ],
    }


def test_a_model_without_a_patch_has_no_before_and_no_after() -> None:
    found = shown(ALONE)
    assert found["After text of each length"][0] == ["tokens", "value", "95% interval", "texts"]
    assert found["After text of each length"][1] == ["0", "0.980", "0.950 to 1.000", "1"]
    assert found["General ability"][0][:3] == ["task", "items", "value"]


def test_a_report_that_was_read_from_a_file_shows_the_same() -> None:
    assert shown(Report.from_json(REPORT.to_json())) == shown(REPORT)


class Cells(HTMLParser):
    """The texts of the cells within the section of details."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.inside = dict(attrs).get("id") == "details"

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.texts.append(data)


def test_the_page_and_the_markdown_hold_every_cell_and_no_markup_of_theirs() -> None:
    cells, text = Cells(), markdown(REPORT)
    cells.feed(html(REPORT))
    for title, lines in shown(REPORT).items():
        assert title in cells.texts
        assert f"### {title}" in text
        for cell in (cell for line in lines for cell in line if cell):
            assert cell in cells.texts
    assert "<of>" not in html(REPORT) + text
    assert "| two-hop | 12 | 0.083 | 0.250 |" in text


def test_without_details_there_is_no_such_part() -> None:
    assert tables(samples.edits(4)) == []
    assert "Behind the figures" not in html(samples.edits(4)) + markdown(samples.edits(4))
