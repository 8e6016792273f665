"""How firmly a text is held: the specification's oracles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.memorised import (
    exact_memorisation,
    extraction_strength,
    hit_at,
    mean_reciprocal_rank,
    probability,
    probability_with_options,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_retain,
)


def test_probability_does_not_depend_on_length() -> None:
    assert probability([-2.0]) == probability([-2.0] * 9) == pytest.approx(math.exp(-2))
    assert probability([]) is None


def test_probability_among_options() -> None:
    options = [[-3.0], [-4.0, -4.0]]
    p = [math.exp(-2), math.exp(-3), math.exp(-4)]
    assert probability_with_options([-2.0], options) == pytest.approx(p[0] / sum(p))
    assert probability_with_options([-2000.0], [[-2000.0]]) == 0.5  # no underflow
    assert probability_with_options([-2000.0], [[-1.0]]) == 0.0
    assert probability_with_options([-2.0], []) is None
    assert probability_with_options([-2.0], [[]]) is None


def test_truth_ratio_of_the_specification() -> None:
    wrong = [[-2.0], [-3.0], [-4.0]]
    assert truth_ratio([-2.5], wrong) == pytest.approx(0.6065, abs=5e-5)
    assert truth_ratio([-2.5], wrong, mean="arithmetic") == pytest.approx(0.8261, abs=5e-5)


def test_truth_ratio_at_the_limits() -> None:
    assert truth_ratio([-1.0], [[-1.0], [-1.0]]) == 1.0
    assert truth_ratio([-5000.0], [[-1.0]]) == math.inf
    assert truth_ratio([-1.0], [[-5000.0]]) == 0.0
    assert truth_ratio([-1.0], []) is None
    assert truth_ratio([], [[-1.0]]) is None


def test_truth_ratios_together() -> None:
    assert truth_ratio_forget([0.5, 2.0, 1.0, 0.0, math.inf]) == pytest.approx((0.5 + 0.5 + 1) / 5)
    assert truth_ratio_retain([0.25, 3.0, 0.0, None]) == pytest.approx((0.75 + 0 + 1) / 3)
    assert truth_ratio_forget([]) is truth_ratio_retain([None]) is None


def test_exact_memorisation() -> None:
    assert exact_memorisation([True, True, False, False]) == 0.5
    assert exact_memorisation([]) is None


@pytest.mark.parametrize(
    ("predicted", "strength"), [("1234", 1.0), ("9234", 0.75), ("9994", 0.25), ("9999", 0.0), ("1239", 0.0)]
)
def test_extraction_strength_of_the_specification(predicted: str, strength: float) -> None:
    assert extraction_strength([a == b for a, b in zip("1234", predicted, strict=True)]) == strength


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_that_of_its_definition(hits: list[bool]) -> None:
    n = len(hits)
    k = min(k for k in range(n + 1) if all(hits[k:]))
    assert extraction_strength(hits) == pytest.approx(1 - k / n)


def test_extraction_strength_of_nothing_is_none() -> None:
    assert extraction_strength([]) is None


def test_ranks() -> None:
    assert mean_reciprocal_rank([1, 2, math.inf]) == pytest.approx(0.5)
    assert hit_at([1, 100, 101, math.inf]) == 0.5
    assert hit_at([1, 3], m=2) == 0.5
    assert mean_reciprocal_rank([]) is hit_at([]) is None
