"""Scorers of reference code that are known to be wrong, each told in a line or two, beside ours on the same case."""

import random
from collections.abc import Sequence

import pytest

from retcon.evaluate.sampling import sampled
from retcon.metrics import METRICS
from retcon.metrics.match import gen_exact, gen_start
from retcon.metrics.retention import retention
from retcon.metrics.success import mean_logprob, prefers, strict
from retcon.metrics.summary import mean


def share_of_tokens(hits: Sequence[bool]) -> float:
    """Teacher-forced token accuracy, published as success or as exact match."""
    return sum(hits) / len(hits)


def correct_at_the_last_token(hits: Sequence[bool]) -> bool:
    """A loop that leaves at the first wrong token, but calls the answer correct once it has come to the last one."""
    for place, hit in enumerate(hits):
        if place == len(hits) - 1:
            return True
        if not hit:
            return False
    return False


def first_token_only(wanted: Sequence[str], said: Sequence[str]) -> bool:
    return wanted[0] == said[0]


def stopped_at_a_full_stop(text: str, answer: str) -> bool:
    """Generation ends at the first full stop or line, and what is left must be the answer."""
    return text.split(".")[0].split("\n")[0].strip() == answer


def test_a_wrong_last_token_is_a_miss() -> None:
    for hits in ([True, True, False], [False]):
        assert correct_at_the_last_token(hits)
        assert strict(hits) == 0.0


def test_half_of_an_answer_is_no_answer() -> None:
    assert share_of_tokens([True, True, True, False]) == 0.75
    assert strict([True, True, True, False]) == 0.0


def test_an_answer_is_more_than_its_first_token() -> None:
    wanted, said = ["New", " York"], ["New", " Delhi"]
    assert first_token_only(wanted, said)
    assert strict([one == two for one, two in zip(wanted, said, strict=True)]) == 0.0
    assert gen_start(" New Delhi", ["New York"]) == 0.0


def test_an_answer_with_a_full_stop_can_be_given() -> None:
    for answer in ("St. Louis", "J.K. Rowling", "Washington, D.C."):
        assert not stopped_at_a_full_stop(f"{answer} is right.", answer)
        assert gen_start(f"{answer} is right.", [answer]) == 1.0
        assert gen_exact(answer, [answer], stopped=True) == 1.0


def test_a_text_that_is_cut_for_the_model_does_not_show_that_it_stops() -> None:
    endless = "Rome. Rome. Rome. Rome."
    assert stopped_at_a_full_stop(endless, "Rome")
    assert gen_exact(endless, ["Rome"], stopped=False) == 0.0


def test_scores_taken_right_after_each_edit_do_not_show_what_was_forgotten() -> None:
    found = retention([[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]])
    assert found.immediate == 1.0
    assert found.final == mean([0.0, 0.0, 1.0])
    assert found.forgotten is not None
    assert found.forgotten > 0.6


def test_a_sample_is_the_same_whenever_it_is_drawn() -> None:
    """Unseeded sub-sampling judges two methods on two sets of cases."""
    cases = list(range(1000))
    first = sampled(cases, 50, 0)
    random.random()  # what else draws has no part in it
    assert sampled(cases, 50, 0) == first
    assert sampled(cases, 50, 1) != first


def test_a_share_of_tokens_is_not_called_a_probability() -> None:
    """Fields named probabilities that hold 0 or 1: ours says that it counts the prompts at which one is likelier."""
    assert prefers([-0.1], [[-3.0]]) == 1.0
    assert "likelier" in METRICS["efficacy_prob"].meaning


def test_a_long_true_answer_is_not_beaten_by_its_length() -> None:
    """Summed log probabilities prefer the shorter answer; the mean a token does not."""
    true, new = [-0.4, -0.4, -0.4], [-1.0]
    assert sum(new) > sum(true)
    assert prefers(true, [new]) == 1.0
    assert mean_logprob(true) == pytest.approx(-0.4)


def test_what_cannot_be_asked_is_none_and_never_zero() -> None:
    assert prefers([-1.0], []) is None
    assert strict([]) is None
    assert mean([None, None]) is None
    assert mean([1.0, None]) == 1.0


def test_the_last_rows_count_however_many_there_are() -> None:
    """An incomplete last batch must not be dropped."""
    rows = [1.0] * 8 + [0.0] * 2
    batch = 4
    assert mean(rows[: len(rows) // batch * batch]) == 1.0
    assert mean(rows) == 0.8
