"""Windows and token-weighted perplexity."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.perplexity import log_perplexity, perplexity, windows


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20), st.integers(0, 70))
def test_windows_are_the_first_tokens_in_order(ids: list[int], size: int, limit: int) -> None:
    found = windows(ids, size, limit)
    assert [token for window in found for token in window] == ids[:limit]
    assert all(len(window) == size for window in found[:-1])
    assert all(1 <= len(window) <= size for window in found)


def test_the_default_is_eight_thousand_tokens_in_windows_of_512() -> None:
    lengths = [len(window) for window in windows(range(10_000))]
    assert lengths == [512] * 15 + [320]


def test_every_token_weighs_the_same() -> None:
    assert log_perplexity([[-1.0] * 9, [-11.0]]) == 2.0


def test_a_uniform_guess_over_n_has_perplexity_n() -> None:
    assert perplexity(log_perplexity([[-math.log(50)] * 7])) == pytest.approx(50)


def test_no_token_gives_none() -> None:
    assert log_perplexity([]) is None
    assert log_perplexity([[]]) is None
    assert perplexity(None) is None


def test_a_ruined_model_gives_infinity_not_an_error() -> None:
    assert perplexity(1e4) == math.inf
