"""The entropy of word n-grams."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.fluency import fluency, ngram_entropy, words


def test_words_that_never_repeat_reach_the_most() -> None:
    text = " ".join(f"w{n}" for n in range(100))
    assert fluency(text) == pytest.approx((2 / 3 * math.log2(99) + 4 / 3 * math.log2(98)) / 2)


def test_hand_counted_example() -> None:
    # bigrams ab ba ab: 2/3, 1/3; trigrams aba bab: 1/2, 1/2
    h2 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert fluency("a b a b") == pytest.approx((2 / 3 * h2 + 4 / 3 * 1.0) / 2)


def test_four_words_that_differ() -> None:
    assert fluency("a b c d") == pytest.approx(1.195, abs=5e-4)


@pytest.mark.parametrize("text", ["", " \n ", "word", "two words", "no no no no"])
def test_saying_nothing_or_one_thing_has_no_fluency(text: str) -> None:
    assert fluency(text) == 0.0


def test_repetition_lowers_it() -> None:
    assert fluency("the cat sat on the mat " * 10) < fluency(" ".join(f"the cat {n} sat" for n in range(15)))


def test_marks_and_letters_of_any_script_are_words() -> None:
    assert words("Málaga, 日本!") == ["Málaga", ",", "日本", "!"]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_entropy_lies_between_zero_and_the_log_of_the_number_of_ngrams(tokens: list[str], n: int) -> None:
    count = max(1, len(tokens) - n + 1)
    assert -1e-12 <= ngram_entropy(tokens, n) <= math.log2(count) + 1e-9
