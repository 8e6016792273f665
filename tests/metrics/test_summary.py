"""Averages that leave out what is missing."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.summary import harmonic_mean, mean

shares = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


def test_missing_values_are_left_out_and_never_count_as_zero() -> None:
    assert mean([None, 1.0, None]) == 1.0
    assert mean([None]) is None
    assert mean([]) is None


def test_harmonic_mean_needs_all_its_parts() -> None:
    assert harmonic_mean([1.0, None, 1.0]) is None
    assert harmonic_mean([]) is None


def test_a_zero_part_makes_the_score_zero() -> None:
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0


@given(shares)
def test_harmonic_mean_is_that_of_the_standard_library(values: list[float]) -> None:
    assert harmonic_mean(values) == pytest.approx(statistics.harmonic_mean(values))
