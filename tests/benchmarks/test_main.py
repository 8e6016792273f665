"""`python -m benchmarks`: which measurements run, and what a failure does to the rest."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import common, matrix, table

Call = Callable[..., int]

command = import_module("benchmarks.__main__")


@pytest.fixture(name="ran")
def _ran() -> list[list[str]]:
    """What ran, in this process or in one of its own."""
    return []


@pytest.fixture(name="call")
def _call(ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call(*words, codes=...)`: the command on three small measurements; its exit code."""
    data = tmp_path / "data.jsonl"
    data.write_text("", encoding="utf-8")
    codes: dict[str, int] = {}

    def run(words: list[str], *, check: bool) -> Any:
        ran.append(words[3:])
        return SimpleNamespace(returncode=codes.get(words[3], 0))

    names = ("cost_a", "cost_b", "speed")
    monkeypatch.setattr(
        command, "MEASUREMENTS", {name: lambda name=name: ran.append([f"here {name}"]) for name in names}
    )
    monkeypatch.setattr(command, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(common, "COUNTERFACT", data)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "write", lambda: ran.append(["table"]))

    def call(*words: str, **found: int) -> int:
        codes.update(found)
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        code: int = command.main()
        return code

    return call


def test_one_name_runs_here(call: Call, ran: list[list[str]]) -> None:
    assert call("speed") == 0
    assert ran == [["here speed"], ["table"]]


def test_a_pattern_names_several_and_what_is_kept_is_not_measured_again(
    call: Call, ran: list[list[str]], tmp_path: Path
) -> None:
    assert call("cost_*") == 0
    assert ran == [["cost_a"], ["cost_b"], ["table"]]
    ran.clear()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cost_a.json").write_text('{"figures": {}}', encoding="utf-8")
    assert call("cost_*") == 0
    assert ran == [["cost_b"], ["table"]]
    ran.clear()
    assert call("--again", "cost_*") == 0
    assert ran == [["cost_a", "--again"], ["cost_b", "--again"], ["table"]]


def test_a_failure_is_told_at_the_end_and_the_rest_are_finished(
    call: Call, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(cost_b=1) == 1
    assert ran == [["cost_a"], ["cost_b"], ["speed"], ["table"]]
    assert "failed, and tried again by the same command: cost_b" in capsys.readouterr().err


def test_a_series_that_is_stopped_stops(call: Call, ran: list[list[str]]) -> None:
    assert call(cost_a=-2) == -2
    assert ran == [["cost_a"]]


def test_a_name_that_is_none_is_refused(call: Call, ran: list[list[str]]) -> None:
    assert call("cost_a", "quality*") == 2
    assert ran == []


def test_a_cell_of_the_matrix_is_forgotten_before_it_is_measured_again(
    call: Call, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "cells", lambda: {"speed": None})
    monkeypatch.setattr(matrix, "anew", lambda name: ran.append([f"anew {name}"]))
    monkeypatch.setattr(matrix, "kept", lambda name: True)
    assert call("--again", "speed") == 0
    assert ran == [["anew speed"], ["here speed"], ["table"]]
    ran.clear()
    assert call("s*") == 0
    assert ran == [["table"]]
