"""What both kinds of report are shown with."""

from retcon.evaluate import Report
from retcon.metrics import METRICS
from retcon.report.parts import figures, flat, markdown_table, number

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
