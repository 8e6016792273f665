"""Membership attacks."""

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.membership import (
    auc,
    gradient_score,
    loss_score,
    min_k,
    min_k_plus_plus,
    privleak,
    reference_score,
    rel_diff,
    zlib_score,
)

SCORES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


def test_scores_of_one_text() -> None:
    values = [-4.0, -1.0, -2.0, -1.0, -2.0]
    assert loss_score(values) == 2.0
    assert zlib_score(values, "abc") == pytest.approx(2.0 / len(zlib.compress(b"abc")))
    assert min_k(values) == pytest.approx(3.0)  # the lowest two of five
    assert min_k(values, 0.01) == 4.0  # at least one
    assert min_k(values, 1.0) == loss_score(values)
    assert reference_score(values, [-1.0]) == 1.0
    assert reference_score(values, [-0.5, -1.5]) == reference_score([-2.0], [-1.0])
    assert gradient_score([0.5, 0.0, 1.0]) == 0.5


def test_min_k_plus_plus_takes_each_token_against_its_own_distribution() -> None:
    assert min_k_plus_plus([-4.0, -1.0], [-2.0, -2.0], [4.0, 1.0], share=0.5) == pytest.approx(1.0)
    assert min_k_plus_plus([-1.0, -1.0], [-1.0, -0.999], [0.0, 0.0], share=0.5) == pytest.approx(1.0)  # clamped at 1e-6
    with pytest.raises(ValueError, match="zip"):
        min_k_plus_plus([-1.0], [], [])


def test_a_text_without_tokens_has_no_score() -> None:
    assert loss_score([]) is min_k([]) is zlib_score([], "a") is reference_score([], [-1.0]) is None
    assert gradient_score([]) is None


def test_auc_is_one_where_forget_texts_look_memorised() -> None:
    assert auc([0.1, 0.2], [1.0, 2.0]) == 1.0
    assert auc([1.0, 2.0], [0.1, 0.2]) == 0.0
    assert auc([1.0, 1.0], [1.0]) == 0.5
    assert auc([], [1.0]) is auc([1.0], []) is None


def test_of_a_broken_model_an_auc_is_no_number() -> None:
    for forget, holdout in (([math.nan, 1.0], [2.0, 3.0]), ([1.0], [math.nan]), ([math.nan] * 3, [math.nan] * 2)):
        found = auc(forget, holdout)
        assert found is not None
        assert math.isnan(found)
    assert auc([math.inf, 1.0], [2.0, math.inf]) == 0.625  # infinite losses are in order


@given(SCORES, SCORES)
def test_auc_counts_pairs(forget: list[float], holdout: list[float]) -> None:
    pairs = [(h > f) + 0.5 * (h == f) for f in forget for h in holdout]
    found = auc(forget, holdout)
    other = auc(holdout, forget)
    assert found == pytest.approx(sum(pairs) / len(pairs))
    assert found is not None
    assert other is not None
    assert found + other == pytest.approx(1.0)


def test_privleak_of_the_specification() -> None:
    assert privleak(0.981, 0.5) == pytest.approx(-96.2)
    assert privleak(2e-5, 0.981) == pytest.approx(5163, abs=0.5)
    assert privleak(2e-5, 0.9812) == pytest.approx(5219, abs=5)  # what a wrong reference looks like
    assert privleak(0.5, 0.5) == 0.0


def test_without_a_reference_there_is_no_comparison() -> None:
    assert privleak(0.5, None) is privleak(None, 0.5) is privleak(0.5, 1.0) is None
    assert rel_diff(0.5, None) is rel_diff(None, 0.5) is rel_diff(0.5, 0.0) is None
    assert rel_diff(0.6, 0.5) == pytest.approx(20.0)
    assert math.copysign(1, rel_diff(0.4, 0.5) or 0) == -1
