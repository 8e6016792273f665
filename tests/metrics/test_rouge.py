"""ROUGE recall."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retcon.metrics.rouge import rouge1_recall, rouge_tokens, rougel_recall, stemmed

TEXTS = st.lists(st.sampled_from(["red", "blue", "green", "deep", "sea"]), max_size=8).map(" ".join)


def test_hand_counted_example() -> None:
    # of "the cat sat on the mat" the text has the, cat, on, the, mat; in order: the cat on the mat
    assert rouge1_recall("the cat is on the mat", "The cat sat on the mat.") == pytest.approx(5 / 6)
    assert rougel_recall("the cat is on the mat", "The cat sat on the mat.") == pytest.approx(5 / 6)
    assert rougel_recall("on the mat the cat", "The cat sat on the mat.") == pytest.approx(3 / 6)


def test_a_word_counts_as_often_as_the_text_has_it() -> None:
    assert rouge1_recall("the", "the the the the") == 0.25
    assert rouge1_recall("the the the the", "the") == 1.0


def test_the_stemmer_is_porters_and_a_choice() -> None:
    assert rouge1_recall("contracts were signed", "the contract signs") == pytest.approx(2 / 3)
    assert rouge1_recall("contracts were signed", "the contract signs", stem=False) == 0.0
    # examples of the paper (Porter, "An algorithm for suffix stripping", 1980)
    pairs = {
        "caresses": "caress",
        "ponies": "poni",
        "relational": "relat",
        "hopefulness": "hope",
        "adjustment": "adjust",
    }
    assert {word: stemmed(word) for word in pairs} == pairs
    assert stemmed("was") == "was"


def test_marks_and_case_do_not_count_and_other_scripts_do() -> None:
    assert rouge_tokens("Snake_case, don't; МОСКВА!", stem=False) == ["snake", "case", "don", "t", "москва"]


@pytest.mark.parametrize("measure", [rouge1_recall, rougel_recall])
def test_a_reference_without_words_has_no_recall(measure: Callable[[str, str], float | None]) -> None:
    assert measure("anything", "...") is None
    assert measure("", "word") == 0.0


@settings(deadline=None)  # the first stem loads the stemmer
@given(TEXTS, TEXTS)
def test_the_longest_subsequence_is_no_longer_than_the_overlap(text: str, reference: str) -> None:
    one, longest = rouge1_recall(text, reference), rougel_recall(text, reference)
    if one is None or longest is None:
        assert one is longest is None
    else:
        assert 0 <= longest <= one <= 1
        assert rougel_recall(reference, reference) == 1.0
