"""Intervals that draw groups of questions."""

from __future__ import annotations

import numpy as np
import pytest

from retcon.evaluate.forgetting.measure import Twin, Values
from retcon.evaluate.forgetting.plan import Item
from retcon.evaluate.forgetting.spread import clusters, intervals
from retcon.requests import Forget, ForgetCase


def items(n: int, group: str | None = None, subject: str | None = None, groups: int = 1) -> list[Item]:
    named = [None if group is None else f"{group}{i % groups}" for i in range(n)]
    cases = [ForgetCase(Forget(f"q{i}", "a", subject, group=name)) for i, name in enumerate(named)]
    return [Item(case, (1,), (2,), (2,), ()) for case in cases]


def sets(forget: list[Item], **more: list[Item]) -> dict[str, list[Item]]:
    return {"forget": forget, "retain": [], "holdout": [], "real_authors": [], "world_facts": []} | more


def test_groups_are_drawn_whole_and_questions_where_there_is_one_group() -> None:
    assert len(set(clusters(items(6, "g", groups=3)))) == 3
    assert len(set(clusters(items(6, "g")))) == 6
    assert len(set(clusters(items(6)))) == 6
    assert len(set(clusters([*items(3, "g"), *items(3, None, "Ada")]))) == 2


def test_an_interval_of_groups_is_wider_than_one_of_questions() -> None:
    rows = [{"refusal_rate": float(i % 4 < 2)} for i in range(40)]

    def width(found: list[Item]) -> float:
        values = Values(rows, [], {}, [], {})  # type: ignore[arg-type]
        low, high = intervals(["refusal_rate"], values, None, sets(found), 0)["refusal_rate"]
        assert low <= 0.5 <= high
        return high - low

    assert width(items(40, "g", groups=4)) > 1.5 * width(items(40))


def test_attacks_and_what_is_made_of_them_have_intervals() -> None:
    draw = np.random.default_rng(0)
    scores = {"mia_min_k": (draw.normal(0, 1, 30).tolist(), draw.normal(1, 1, 20).tolist())}
    values = Values([], [], {}, [], scores)
    names = ["mia_min_k", "privleak", "rel_diff", "forget_quality"]
    found = intervals(names, values, Twin([], 0.5), sets(items(30), holdout=items(20)), 0)
    assert list(found) == ["mia_min_k", "privleak", "rel_diff"]
    low, high = found["mia_min_k"]
    assert 0.5 < low < high < 1
    assert found["privleak"] == pytest.approx((100 * (0.5 - high) / 0.5, 100 * (0.5 - low) / 0.5))
    again = intervals(names, values, Twin([], 0.5), sets(items(30), holdout=items(20)), 0)
    assert again == found
    assert list(intervals(names, values, None, sets(items(30), holdout=items(20)), 0)) == ["mia_min_k"]


def test_the_attacks_by_gradients_and_against_a_reference_have_intervals_too() -> None:
    draw = np.random.default_rng(0)
    sides = [draw.normal(0, 1, 30).tolist(), draw.normal(1, 1, 20).tolist()]
    values = Values([], [], {}, [], {"mia_loss": (sides[0], sides[1]), "mia_grad_norm": (sides[0], sides[1])})
    names, all_sets = ["mia_loss", "mia_reference", "mia_grad_norm"], sets(items(30), holdout=items(20))
    level = Twin([], None, {"forget": [2.0] * 30, "holdout": [2.0] * 20})
    found = intervals(names, values, level, all_sets, 0)
    assert list(found) == names
    assert len(set(found.values())) == 1  # a loss that is the same everywhere changes no order
    apart = Twin([], None, {"forget": [0.0] * 30, "holdout": [9.0] * 20})
    assert intervals(names, values, apart, all_sets, 0)["mia_reference"] == (0, 0)
    partly = Twin([], None, {"forget": [0.0] * 29 + [None], "holdout": [9.0] * 20})
    assert list(intervals(names, values, partly, all_sets, 0)) == ["mia_loss", "mia_grad_norm"]
    assert list(intervals(names, values, None, all_sets, 0)) == ["mia_loss", "mia_grad_norm"]


def test_utility_has_one_where_each_of_its_sets_has() -> None:
    rows = [{"probability": p, "rouge": p, "truth_ratio": p} for p in (0.4, 0.5, 0.6)]
    full = {"retain": rows, "real_authors": rows, "world_facts": rows}
    more = {name: items(3) for name in full}
    values = Values([], [], full, [], {})  # type: ignore[arg-type]
    low, high = intervals(["model_utility"], values, None, sets(items(1), **more), 0)["model_utility"]
    assert 0.4 < low < 0.5 < high < 0.6
    values = Values([], [], full | {"retain": []}, [], {})  # type: ignore[arg-type]
    assert intervals(["model_utility"], values, None, sets(items(1), **(more | {"retain": []})), 0) == {}
