"""Strict success and preference."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.success import mean_logprob, prefers, strict

logprobs = st.lists(st.floats(-30, 0), min_size=1, max_size=6)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_wrong_token_is_a_miss_wherever_it_stands(place: int) -> None:
    hits = [True, True, True]
    assert strict(hits) == 1.0
    hits[place] = False
    assert strict(hits) == 0.0


def test_an_answer_without_tokens_is_not_judged() -> None:
    assert strict([]) is None
    assert mean_logprob([]) is None
    assert prefers([], [[-1.0]]) is None
    assert prefers([-1.0], [[]]) is None


def test_preference_is_by_the_mean_so_that_long_answers_are_not_punished() -> None:
    long, short = [-1.0, -1.0, -1.0], [-2.0]
    assert sum(long) < sum(short)
    assert prefers(long, [short]) == 1.0


def test_the_answer_must_beat_every_other() -> None:
    assert prefers([-1.0], [[-2.0], [-3.0]]) == 1.0
    assert prefers([-1.0], [[-2.0], [-0.5]]) == 0.0


def test_no_other_answer_gives_none_not_zero() -> None:
    assert prefers([-1.0], []) is None


def test_what_is_not_a_number_is_no_success() -> None:
    assert prefers([math.nan], [[-1.0]]) == 0.0
    assert prefers([-1.0], [[math.nan]]) == 0.0


@given(logprobs, logprobs)
def test_at_most_one_of_two_answers_is_preferred(first: list[float], second: list[float]) -> None:
    wins = (prefers(first, [second]) or 0) + (prefers(second, [first]) or 0)
    assert wins == (0 if mean_logprob(first) == mean_logprob(second) else 1)
