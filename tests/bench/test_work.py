"""Jobs that are done, that fail, and that are stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from retcon.bench.rows import Rows
from retcon.bench.work import Job, sentence, work
from retcon.errors import RetconError, RetconWarning


def job(key: str, found: Mapping[str, Any] | BaseException, made: list[str]) -> Job:
    def make() -> Mapping[str, Any]:
        made.append(key)
        if isinstance(found, BaseException):
            raise found
        return found

    return Job(key, f"row {key}", {"method": key}, make)


def test_one_that_fails_says_why_and_the_rest_are_finished(tmp_path: Path) -> None:
    made: list[str] = []
    jobs = [job("a", {"n": 1}, made), job("b", RuntimeError("it\nburst"), made), job("c", {"n": 3}, made)]
    with pytest.warns(RetconWarning, match="row b failed"):
        rows = work(Rows(tmp_path), jobs)
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert rows[0] == {"key": "a", "row": "row a", "method": "a", "n": 1}
    assert rows[1]["failed"] == "RuntimeError: it burst"
    assert [row.get("n") for row in rows] == [1, None, 3]
    jobs[1] = job("b", {"n": 2}, made)
    assert [row["n"] for row in work(Rows(tmp_path), jobs)] == [1, 2, 3]
    assert made == ["a", "b", "c", "b"]


def test_a_damaged_file_of_tensors_fails_its_row_alone(tmp_path: Path) -> None:
    made: list[str] = []
    damaged = SafetensorError("Error while deserializing header")
    with pytest.warns(RetconWarning, match="row a failed"):
        rows = work(Rows(tmp_path), [job("a", damaged, made), job("b", {"n": 2}, made)])
    assert rows[0]["failed"] == "SafetensorError: Error while deserializing header"
    assert rows[1]["n"] == 2


def test_one_that_is_stopped_stops_all_and_loses_no_row_before_it(tmp_path: Path) -> None:
    made: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(Rows(tmp_path), [job("a", {}, made), job("b", KeyboardInterrupt(), made), job("c", {}, made)])
    assert [row["key"] for row in Rows(tmp_path).all()] == ["a"]
    assert made == ["a", "b"]


def test_what_went_wrong_is_one_line_that_names_the_kind_of_error_unless_it_is_ours() -> None:
    assert sentence(RetconError("give\nat least 1")) == "give at least 1"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(AssertionError()) == "AssertionError"
