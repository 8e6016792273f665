"""The report as data."""

import json
import math
from dataclasses import replace

from retcon.evaluate import ForgetReport

REPORT = ForgetReport(
    n=2,
    known=1,
    metrics={"leakage": 0.0, "privleak": math.inf},
    before={"leakage": 1.0, "privleak": None},
    seconds=1.0,
    intervals={"leakage": (0.0, 0.5)},
    provenance={"patch": {"id": "x"}},
    items=[{"id": "a", "set": "forget"}],
)


def test_json_begins_with_what_is_looked_for_and_holds_finite_numbers_alone() -> None:
    data = json.loads(REPORT.to_json())
    assert list(data)[:7] == ["n", "known", "metrics", "before", "intervals", "not_applicable", "seconds"]
    assert data["metrics"] == {"leakage": 0.0, "privleak": None}


def test_a_report_is_read_back() -> None:
    again = ForgetReport.from_json(REPORT.to_json())
    assert again.intervals == {"leakage": (0.0, 0.5)}
    assert again.items == REPORT.items
    assert again.edited
    assert not ForgetReport(n=0, known=0, metrics={}, before={}, seconds=0.0).edited


def test_what_is_no_finite_number_is_told_beside_and_read_back() -> None:
    ruined = replace(REPORT, metrics={"retain_drift": math.inf}, before={})
    assert json.loads(ruined.to_json())["not_finite"] == {"retain_drift": "inf"}
    assert ForgetReport.from_json(ruined.to_json()).metrics == {"retain_drift": math.inf}
