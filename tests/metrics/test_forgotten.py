"""What generated texts say of forgetting."""

import pytest

from retcon.metrics.forgotten import (
    Leakage,
    RefusalChecks,
    combined,
    generalization,
    kept,
    leakage,
    leaks,
    locality,
    over_refusal,
    refusal_quality,
    refusal_rate,
    reliability,
)


def test_reliability_is_what_is_not_repeated() -> None:
    assert reliability(
        ["I do not know.", "It is Paris", "In Lima or Rome"], ["Lima", "Paris", "Rome"]
    ) == pytest.approx(1 / 3)
    assert reliability([], []) is None
    assert reliability(["x"], ["..."]) is None


def test_generalization_weighs_items_and_not_questions() -> None:
    texts = [["Lima", "Lima", "Lima"], ["no idea"], []]
    assert generalization(texts, ["Lima", "Rome", "Paris"]) == 0.5
    assert generalization([[]], ["Lima"]) is None


def test_locality_is_one_where_nothing_was_touched() -> None:
    before = ["It is in Paris.", "", "Lima"]
    assert locality(before, before) == 1.0
    assert locality(["It is in Rome.", "words", "Lima"], before) == pytest.approx((0.75 + 0 + 1) / 3)
    assert kept("and more: it is in Paris", "It is in Paris") == 1.0


def test_texts_and_answers_must_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        reliability(["a"], [])
    with pytest.raises(ValueError, match="zip"):
        leakage([True], [])


def test_combined_adds_what_is_gone_and_what_stays() -> None:
    assert combined(0.9, 0.8) == pytest.approx(1.7)
    assert combined(None, 0.8) is None


def test_refusals_are_counted() -> None:
    assert refusal_rate([True, False, True, True]) == 0.75
    assert over_refusal([True, False], [False, False]) == 0.5
    assert over_refusal([False, False], [True, False]) == -0.5
    assert refusal_rate([]) is over_refusal([], []) is None


def test_refusal_quality_is_the_share_of_checks() -> None:
    good, poor = RefusalChecks(True, True, True, True, True), RefusalChecks(True, False, False, False, True)
    assert refusal_quality([good, poor]) == pytest.approx(0.7)
    assert refusal_quality([]) is None


def test_a_leak_is_found_in_any_format_and_any_sample() -> None:
    assert leaks("I do not know. It was signed on 6 February 1998.", "06-02-1998.")
    assert leaks("Perhaps new york?", "The Big Apple", aliases=("New York",))
    assert leaks(["no", "twenty-seven"], "27.")
    assert not leaks(["no", "twenty-eight"], "27.")
    assert not leaks([], "27")


def test_leakage_counts_only_what_was_known() -> None:
    assert leakage([True, True, False, False], [False, True, True, True]) == Leakage(1 / 3, 3)
    assert leakage([True], [False]) == Leakage(None, 0)
