"""The verdict: erased only against a twin, with figures of every kind, over enough questions; else less is said."""

from dataclasses import replace
from typing import Any

import pytest

from retcon.probes.record import Probed, ProbeResult
from retcon.probes.verdict import ACCESS_CONTROL, CORE


def result(name: str, attacked: float = 0.0, twin: float | None = 0.0, **more: Any) -> ProbeResult:
    values: dict[str, Any] = {
        "name": name,
        "setting": {},
        "original": 1.0,
        "unlearned": 0.0,
        "attacked_original": 1.0,
        "attacked": attacked,
        "attacked_twin": twin,
        "recovery": attacked,
        "n": 20,
        "seconds": 1.0,
    }
    return ProbeResult(**values | more)


def probed(*changed: ProbeResult, **more: Any) -> Probed:
    rows = {name: result(name) for name in CORE}
    rows["role_play"] = result("role_play", setting={"prompt": "role_play"})
    rows |= {one.name: one for one in changed}
    values: dict[str, Any] = {
        "results": list(rows.values()),
        "model": "tiny",
        "patch": "0" * 16,
        "method": "hand",
        "asked": 30,
        "known": 20,
        "unlearned": 0.0,
        "twin": 0.0,
        "folds": True,
        "has_twin": True,
        "chat": True,
        "seed": 0,
        "seconds": 1.0,
    }
    return Probed(**values | more)


def test_erased_where_no_probe_brings_out_more_than_of_the_twin() -> None:
    found = probed(result("quantise", 0.3, 0.26))
    assert found.kind == "erased"
    assert found.verdict().startswith("Erased, as far as these probes see: no probe brings out more of the 20 known")


def test_a_probe_that_brings_out_more_is_named_with_what_it_undid() -> None:
    found = probed(result("quantise", 0.5, 0.1, setting={"bits": 4, "order": "merged"}), result("decoding", 0.2, 0.2))
    assert found.kind == "suppresses"
    assert "than of a model that never saw them, by: quantise (bits 4, order merged)" in found.verdict()
    assert "that it undid: quantise (bits 4, order merged) 50%, decoding 20%." in found.verdict()


def test_of_curves_the_areas_are_compared() -> None:
    rows = [result("relearn_same", 1.0, 1.0, detail={"area": {"unlearned": u, "twin": 0.4}}) for u in (0.42, 0.6)]
    assert [probed(row).kind for row in rows] == ["erased", "suppresses"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"has_twin": False, "twin": None}, "without a model that never saw them (a twin) nothing can show"),
        ({"known": 9}, "only 9 answers were known"),
        ({"unlearned": 0.2}, "by: the plain question"),
    ],
)
def test_less_than_that_is_not_called_erased(more: dict[str, Any], said: str) -> None:
    found = probed(**more)
    assert found.kind == "suppresses"
    assert said in found.verdict()


@pytest.mark.parametrize("name", [*CORE, "role_play"])
def test_a_kind_of_probe_without_figures_is_named(name: str) -> None:
    missing = result(name, attacked=0.0, setting={"prompt": name} if name == "role_play" else {})
    found = probed(replace(missing, attacked=None, recovery=None, note="n/a: why"))
    assert found.kind == "suppresses"
    assert f"there are no figures for {'prompts' if name == 'role_play' else name}" in found.verdict()


def test_what_is_no_change_of_weights_denies_access_whatever_the_figures() -> None:
    found = probed(result("detach", 1.0), folds=False)
    assert found.kind == "denies access"
    assert ACCESS_CONTROL in found.verdict()
    assert "detach 100%" in found.verdict()


def test_answers_that_are_still_given_are_not_forgotten() -> None:
    found = probed(unlearned=0.97)
    assert found.kind == "forgets nothing"
    assert found.verdict() == "Forgets nothing: 97% of the answers come out when they are plainly asked for."
    memory = probed(unlearned=1.0, folds=False)
    assert (memory.kind, ACCESS_CONTROL in memory.verdict()) == ("forgets nothing", True)


def test_where_nothing_was_known_nothing_is_said() -> None:
    assert probed(known=0, unlearned=None).kind == "unknown"
