"""Why a figure is missing."""

from dataclasses import replace

from tests.evaluate.forgetting.conftest import FORGET, HOLDOUT, RETAIN

from retcon.evaluate.forgetting.measure import Values
from retcon.evaluate.forgetting.plan import Plan
from retcon.evaluate.forgetting.reference import Marks, Reference
from retcon.evaluate.forgetting.remarks import reasons
from retcon.metrics import FORGET_METRICS

PLAN = Plan(frozenset(), {"forget": ()}, True, 4)
NONE = Values([], [], {}, [], {})
BARE = Reference(marks=Marks("", "", "", ""), n={}, probability=0.1, truth_ratios=[], membership={})
GIVEN = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT, "real_authors": [], "world_facts": RETAIN}


def test_every_figure_has_a_reason_of_its_own() -> None:
    missing = dict.fromkeys(FORGET_METRICS)
    empty = dict.fromkeys(GIVEN, FORGET[:0])
    for given, reference in ((empty, None), (GIVEN, None), (GIVEN, BARE)):
        found = reasons(missing, PLAN, NONE, given, reference)
        assert list(found) == list(FORGET_METRICS)
        assert all(found.values())
    assert "give a reference" in reasons({"privleak": None}, PLAN, NONE, GIVEN, None)["privleak"]
    assert "make it with holdout" in reasons({"privleak": None}, PLAN, NONE, GIVEN, BARE)["privleak"]
    assert "give a reference" in reasons({"mia_reference": None}, PLAN, NONE, GIVEN, None)["mia_reference"]
    assert reasons({"mia_reference": None}, PLAN, NONE, GIVEN, BARE) == {
        "mia_reference": "the record of the reference has no losses; make it again"
    }
    full = replace(BARE, losses={"forget": [None], "holdout": [None]})
    assert "no finite loss" in reasons({"mia_reference": None}, PLAN, NONE, GIVEN, full)["mia_reference"]
    assert "too large" in reasons({"mia_grad_norm": None}, PLAN, NONE, GIVEN, None)["mia_grad_norm"]
    shut = replace(NONE, no_slopes="nothing comes through")
    assert reasons({"mia_grad_norm": None}, PLAN, shut, GIVEN, None) == {"mia_grad_norm": "nothing comes through"}
    assert "give holdout" in reasons({"mia_grad_norm": None}, PLAN, NONE, empty, None)["mia_grad_norm"]
    with_ratios = Values([], [], {}, [0.5], {})
    assert "the reference has no truth ratios" in str(reasons({"forget_quality": None}, PLAN, with_ratios, GIVEN, BARE))
    assert reasons({"model_utility": None}, PLAN, NONE, GIVEN, None) == {
        "model_utility": "there are no real-author questions; give real_authors"
    }
    assert reasons({"leakage": 0.0}, PLAN, NONE, GIVEN, None) == {}
