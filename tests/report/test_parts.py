"""What both kinds of report are shown with."""

from xml.etree import ElementTree

from retcon.evaluate import Report
from retcon.metrics import METRICS
from retcon.report.parts import alone, figures, flat, markdown_table, number
from retcon.report.plots import Point, scatter

REPORT = Report(
    n=1,
    metrics={"efficacy": 1.0, "specificity": 0.5},
    before={"efficacy": 0.0, "specificity": 1.0},
    seconds=0.0,
    provenance={"patch": {"id": "p"}},
)


def test_a_verdict_goes_by_what_is_better() -> None:
    (gain,) = figures(REPORT, "gain", METRICS)
    (harm,) = figures(REPORT, "harm", METRICS)
    assert [(figure.name, figure.verdict) for figure in (gain, harm)] == [
        ("efficacy", "better"),
        ("specificity", "worse"),
    ]
    (near,) = figures(REPORT, "gain", METRICS, ["efficacy"])
    assert near.verdict == "worse"


def test_columns_without_content_are_left_out() -> None:
    assert markdown_table(["a", "b", "c"], [["1", "", "–"], ["2", "x", ""]]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 |  |",
        "| 2 | x |",
        "",
    ]


def test_numbers_and_nested_data_are_plain() -> None:
    assert number(float("nan")) == "not a number"
    assert flat({"a": {"b": [1, 2], "c": None}, "d": []}) == [("a b", "1 · 2"), ("a c", "–"), ("d", "–")]


def test_a_plot_alone_is_whole_and_brings_its_colours_for_light_and_dark() -> None:
    text = alone(scatter([Point("a & b", 0.1, 0.5), Point("c", 0.4, 0.9)], title="t", x="harm", y="gain"))
    picture = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert picture.tag == f"{space}svg"
    assert (picture.get("viewBox"), picture.get("width"), picture.get("height")) == ("0 0 400 270", "760", "513")
    style = picture.findtext(f"{space}style") or ""
    for part in ("--accent: #2a62b8", "prefers-color-scheme: dark", "--accent: #74a9ff", "svg .front", "svg .line.c7"):
        assert part in style
    assert "{%" not in style
    assert "a & b" in [one.text for one in picture.iter(f"{space}text")]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
