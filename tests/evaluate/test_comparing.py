"""A paired test between two reports."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from retcon.errors import RetconError
from retcon.evaluate import Report, compare


def report(
    values: Sequence[float | None], *, start: int = 0, hits: list[float] | None = None, items: str = "a"
) -> Report:
    cases: list[dict[str, Any]] = [
        {
            "id": str(n),
            "prompt": f"prompt {n}",
            "target": "Rome",
            "subject": f"subject {n}",
            "metrics": {"efficacy": value},
        }
        for n, value in enumerate(values, start)
    ]
    details = {} if hits is None else {"ability": {"arithmetic": {"hits": hits, "items_sha256": items}}}
    metrics: dict[str, float | None] = {
        "efficacy": 0.5,
        "score": 0.5,
        **({} if hits is None else {"ability_arithmetic": 0.5}),
    }
    return Report(len(cases), metrics, {}, 0.0, cases=cases, details=details)


def test_a_difference_on_the_same_cases_is_told_with_its_p() -> None:
    better = report([1.0] * 30 + [0.0] * 10)
    worse = report([1.0] * 10 + [0.0] * 30)
    found = compare(better, worse)
    assert (found.cases, found.only_first, found.only_second) == (40, 0, 0)
    one = found.figures["efficacy"]
    assert (one.difference, one.rows, one.clusters) == (0.5, 40, 40)
    assert one.low > 0
    assert one.p < 0.01
    assert compare(worse, better).figures["efficacy"].difference == -0.5
    assert list(found.figures) == ["efficacy"]  # the score is no mean over cases


def test_equal_reports_do_not_differ() -> None:
    one = compare(report([1.0, 0.0] * 10), report([1.0, 0.0] * 10)).figures["efficacy"]
    assert (one.difference, one.p) == (0.0, 1.0)


def test_only_shared_cases_count_whatever_their_order() -> None:
    first, second = report([1.0] * 6), report([0.0] * 6, start=2)
    second.cases.reverse()
    found = compare(first, second)
    assert (found.cases, found.only_first, found.only_second) == (4, 2, 2)
    assert found.figures["efficacy"].rows == 4
    with pytest.raises(RetconError, match="no case in common"):
        compare(first, report([1.0], start=50))


def test_cases_that_lack_a_figure_are_left_out() -> None:
    assert compare(report([1.0, None, 1.0, 0.0]), report([0.0, 1.0, None, 0.0])).figures["efficacy"].rows == 2


def test_equal_cases_are_paired_in_order() -> None:
    first, second = report([1.0, 0.0, 1.0]), report([1.0, 0.0, 1.0])
    for one in (first, second):
        for case in one.cases[:2]:
            case["id"], case["prompt"] = None, "the same"
    assert compare(first, second).figures["efficacy"].difference == 0.0
    assert compare(first, second).cases == 3


def test_abilities_are_compared_item_by_item_where_the_items_are_the_same() -> None:
    first, second = report([1.0] * 3, hits=[1.0] * 20), report([1.0] * 3, hits=[0.0, 1.0] * 10)
    assert compare(first, second).figures["ability_arithmetic"].difference == 0.5
    other = report([1.0] * 3, hits=[0.0, 1.0] * 10, items="b")
    assert "ability_arithmetic" not in compare(first, other).figures


def test_it_is_plain_data_for_json() -> None:
    found = compare(report([1.0] * 5), report([0.0, 1.0] * 2 + [1.0])).to_dict()
    assert set(found) == {"cases", "only_first", "only_second", "figures", "not_compared"}
    assert set(found["figures"]["efficacy"]) == {"difference", "interval", "p", "rows", "clusters"}


def test_a_case_that_is_no_finite_number_is_not_left_out_in_silence() -> None:
    ruined = Report.from_json(report([1.0, math.nan, 1.0, 0.0]).to_json())
    found = compare(ruined, report([0.0, 1.0, 0.0, 0.0]))
    assert found.figures == {}
    assert found.to_dict()["not_compared"] == {"efficacy": "in 1 of 4 cases it is no finite number"}
