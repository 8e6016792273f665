"""What the time of a cell is taken from."""

from typing import Any

import pytest

from retcon.bench.cells import Cell
from retcon.bench.estimate import Timings, timing
from retcon.lm import LM

CELL = Cell(model="tiny", method="memit", dataset="builtin", edits=10, options={"layers": (1, 2)})


def told(lm: LM, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "fingerprint": lm.fingerprint(), "device": "cpu", "method": "memit", "options": {"layers": [1, 2]},
        "mode": "batch", "n": 10, "edit": 20.0, "judged": 5, "judge": 10.0, "metrics": ["efficacy"],
    }  # fmt: skip
    return found | more


def test_this_folder_goes_before_earlier_runs_and_those_before_a_guess(lm: LM) -> None:
    earlier = told(lm, edit=40.0)
    here = Timings([told(lm)], [earlier]).of(CELL, lm, 20, 10, ["efficacy"])
    assert (here.seconds, here.source) == (20 * 2.0 + 10 * 2.0, "this folder")
    found = Timings([], [earlier]).of(CELL, lm, 20, 10, ["efficacy"])
    assert (found.seconds, found.source) == (20 * 4.0 + 10 * 2.0, "earlier runs")
    guess = Timings([], []).of(CELL, lm, 20, 10, ["efficacy"])
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    assert guess.seconds == pytest.approx(30 * parameters / 135e6)
    assert guess.source == "a rough guess"


def test_the_least_certain_part_is_what_is_told(lm: LM) -> None:
    mixed = Timings([told(lm)], [told(lm, metrics=["fluency"])])
    assert mixed.of(CELL, lm, 10, 5, ["fluency"]).source == "earlier runs"
    assert mixed.of(CELL, lm, 10, 5, ["perplexity"]).source == "a rough guess"


def test_only_the_same_model_method_and_mode_counts_and_like_options_and_sizes_go_first(lm: LM) -> None:
    others = [told(lm, **more) for more in ({"fingerprint": "x"}, {"method": "rome"}, {"mode": "sequential"})]
    assert Timings(others, []).of(CELL, lm, 10, 5, ["efficacy"]).source == "a rough guess"
    same = [told(lm, options={}, edit=1.0), told(lm, n=1000, edit=1000.0), told(lm, n=20, edit=60.0)]
    assert Timings(same, []).of(CELL, lm, 10, 5, ["efficacy"]).seconds == 10 * 3.0 + 10.0


def test_a_row_tells_its_speed_unless_others_had_found_its_targets() -> None:
    row = {
        "method": "memit", "options": {}, "mode": "batch", "n": 10, "judged": 5, "targets_cached": 0,
        "metrics": {"score": 1.0, "efficacy": 1.0}, "provenance": {"model": {"fingerprint": "f", "device": "cpu"}},
        "seconds": {"edit": 30.0, "statistics": 10.0, "targets": 15.0, "solve": 5.0, "judge": 4.0},
    }  # fmt: skip
    found = timing(row)
    assert found is not None
    assert (found["edit"], found["judge"], found["metrics"]) == (20.0, 4.0, ["efficacy", "score"])
    assert timing(row | {"targets_cached": 3}) is None
    assert timing({"failed": "no"}) is None
