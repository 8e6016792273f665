"""The report as data."""

import json
import math

from retcon.evaluate import Report

REPORT = Report(
    n=2,
    metrics={"efficacy": 1.0, "generalization": None},
    before={"efficacy": 0.0, "generalization": None},
    seconds=1.5,
    intervals={"efficacy": (0.5, 1.0)},
    provenance={"patch": {"id": "ab", "edits": 2}, "seed": 0},
    cases=[{"id": "é", "metrics": {"efficacy": 1.0}}],
)


def test_json_begins_with_what_a_script_reads() -> None:
    assert list(json.loads(REPORT.to_json()))[:4] == ["n", "metrics", "before", "seconds"]
    assert REPORT.to_json(indent=None).startswith('{"n": 2, "metrics": {"efficacy": 1.0, "generalization": null}')


def test_json_round_trip() -> None:
    assert Report.from_json(REPORT.to_json()) == REPORT


def test_numbers_that_are_not_finite_become_null() -> None:
    ruined = Report(n=1, metrics={"perplexity": math.inf, "log_perplexity": math.nan}, before={}, seconds=0.0)
    assert json.loads(ruined.to_json())["metrics"] == {"perplexity": None, "log_perplexity": None}


def test_a_report_knows_whether_a_patch_was_on() -> None:
    assert REPORT.edited
    assert not Report(n=0, metrics={}, before={}, seconds=0.0, provenance={"patch": None}).edited


def test_what_is_no_finite_number_is_told_beside_and_read_back() -> None:
    case = {"metrics": {"neighbourhood_kl": math.nan}, "before": {"neighbourhood_kl": 0.0}}
    metrics = {"perplexity": math.inf, "log_perplexity": math.nan, "efficacy": 1.0, "fluency": None}
    ruined = Report(n=1, metrics=metrics, before={"perplexity": 20.0}, seconds=0.0, cases=[case])
    told = json.loads(ruined.to_json())
    assert told["not_finite"] == {"perplexity": "inf", "log_perplexity": "nan"}
    assert "before_not_finite" not in told
    assert told["cases"][0]["not_finite"] == {"neighbourhood_kl": "nan"}
    read = Report.from_json(ruined.to_json())
    assert (read.metrics["perplexity"], read.metrics["fluency"]) == (math.inf, None)
    assert math.isnan(read.metrics["log_perplexity"] or 0.0)
    assert math.isnan(read.cases[0]["metrics"]["neighbourhood_kl"])
    assert read.to_json() == ruined.to_json()
    assert "not_finite" not in REPORT.to_dict()
