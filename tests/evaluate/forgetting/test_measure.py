"""From values to figures, where the model does not matter."""

import pytest

from retcon.evaluate.forgetting.measure import Twin, Values, evenness, figures, quality


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
