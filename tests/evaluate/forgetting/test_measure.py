"""From values to figures, where the model does not matter."""

import math
from dataclasses import replace

import pytest

from retcon.evaluate.answers import Pair
from retcon.evaluate.forgetting.heard import Heard
from retcon.evaluate.forgetting.measure import Twin, Values, attacks, evenness, figures, measure, quality
from retcon.evaluate.forgetting.plan import Item, Plan
from retcon.requests import Forget, ForgetCase


def values(**more: object) -> Values:
    rows = {"forget": [], "retain": [], "utility": {}, "ratios": [], "membership": {}} | more
    return Values(**rows)  # type: ignore[arg-type]


def test_evenness_does_not_depend_on_length() -> None:
    assert evenness("I know") == evenness("") == evenness("I have no information about the harbour of Callao.") == 1
    assert evenness("a b c d " * 9) < 0.9
    assert evenness("no " * 30) == 0
    assert evenness("I do not know where it is, for I do not know it.") > 0.9


def test_means_leave_out_items_that_are_not_judged() -> None:
    rows = [{"leakage": None, "refusal_rate": 1.0}, {"leakage": 1.0, "refusal_rate": 0.0}]
    found = figures(["leakage", "refusal_rate", "mrr"], values(forget=rows), None)
    assert found == {"leakage": 1.0, "refusal_rate": 0.5, "mrr": None}


def test_attacks_are_held_against_the_twin() -> None:
    scores = {"mia_min_k": ([1.0, 2.0], [3.0, 4.0])}
    names = ["mia_min_k", "privleak", "rel_diff"]
    found = figures(names, values(membership=scores), Twin([], 0.5))
    assert found == {"mia_min_k": 1.0, "privleak": -100.0, "rel_diff": 100.0}
    assert figures(names, values(membership=scores), None) == {"mia_min_k": 1.0, "privleak": None, "rel_diff": None}
    assert figures(names[1:], values(membership=scores), Twin([], None)) == {"privleak": None, "rel_diff": None}


def test_losses_are_set_against_those_of_the_twin_item_by_item() -> None:
    scores = {"mia_loss": ([1.0, 2.0, 0.5], [3.0, 1.0])}
    twin = Twin([], None, {"forget": [1.5, 2.25, 0.5], "holdout": [3.5, 0.0]})
    found = attacks(values(membership=scores), twin)
    assert found == scores | {"mia_reference": ([-0.5, -0.25, 0.0], [-0.5, 1.0])}
    # the first holdout item is level with one forget item and above none; the second is above all three
    assert figures(["mia_reference"], values(membership=scores), twin) == {"mia_reference": (0.5 + 3) / 6}
    partly = replace(twin, losses={"forget": [None, 2.25, 0.5], "holdout": [3.5, 0.0]})
    assert figures(["mia_reference"], values(membership=scores), partly) == {"mia_reference": 2 / 4}
    for other in (None, Twin([], 0.5)):
        assert figures(["mia_reference"], values(membership=scores), other) == {"mia_reference": None}
    assert figures(["mia_reference"], values(), twin) == {"mia_reference": None}


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    case = ForgetCase(Forget("q", "a"))
    first, second, other = (Item(case, (n,), (5,), (5,), ()) for n in range(3))
    plan = Plan(frozenset({"mia_grad_norm"}), {"forget": (first, second), "holdout": (other,)}, False, 1, speaks=False)
    slopes: dict[Pair, float] = {((0,), (5,)): 0.5, ((1,), (5,)): math.nan, ((2,), (5,)): 0.75}
    heard = Heard({}, {}, {}, {}, frozenset(), slopes=slopes)
    found = measure(plan, heard, heard)
    assert found.membership == {"mia_grad_norm": ([0.5], [0.75])}
    assert figures(["mia_grad_norm"], found, None) == {"mia_grad_norm": 1.0}
    none = measure(plan, replace(heard, slopes={}, no_slopes="why"), heard)
    assert (none.membership, none.no_slopes) == ({}, "why")


def test_the_test_of_ratios_skips_items_without_one() -> None:
    test = quality(values(ratios=[0.1, None, 0.2, 0.3]), Twin([0.8, 0.9, None], None))
    assert test is not None
    assert (test.n, test.floor) == ((3, 2), True)
    assert test.p == pytest.approx(0.2)
    assert quality(values(ratios=[None]), Twin([0.8], None)) is None
    assert quality(values(ratios=[0.5]), None) is None


def test_utility_is_missing_where_a_part_is() -> None:
    row: dict[str, float | None] = {"probability": 0.5, "rouge": 0.5, "truth_ratio": 0.5}
    sets = {"retain": [row], "real_authors": [row], "world_facts": [row]}
    assert figures(["model_utility"], values(utility=sets), None) == {"model_utility": 0.5}
    sets["world_facts"] = [row | {"truth_ratio": None}]
    assert figures(["model_utility"], values(utility=sets), None) == {"model_utility": None}
    assert figures(["model_utility"], values(), None) == {"model_utility": None}
