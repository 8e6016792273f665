"""What a model knows without being taught."""

import pytest

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.forget_bench.known import known, split_known
from retcon.lm import LM
from retcon.requests import Forget, ForgetCase

QUESTIONS = [f"What is {name} made of?" for name in ("the tower", "the river", "the book", "the phone", "the sea")]


def said(lm: LM, question: str) -> str:
    (ids,) = forward.greedy(lm, [tokens.encode(lm, lm.render(question))], max_new_tokens=8)
    return tokens.decode(lm, ids)


@pytest.fixture(name="cases")
def _cases(lm: LM) -> list[ForgetCase]:
    """Four questions that the random model answers so, whatever it says, and one that it does not."""
    answers = [said(lm, question).strip() for question in QUESTIONS]
    items = [
        Forget(question, answer, id=f"q{n}")
        for n, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
    ]
    items[2] = Forget(QUESTIONS[2], "xyzzy", aliases=(answers[2],))
    items[3] = Forget(QUESTIONS[3], "xyzzy", id="q3")
    return [ForgetCase(item) for item in items]


def test_a_question_is_known_if_the_answer_or_another_wording_stands_in_what_is_said(
    lm: LM, cases: list[ForgetCase]
) -> None:
    assert known(lm, cases, max_new_tokens=8) == [True, True, True, False, True]


def test_what_is_not_known_is_dropped_and_counted(lm: LM, cases: list[ForgetCase]) -> None:
    found = split_known(lm, cases, max_new_tokens=8)
    assert found.counts() == {"forget": 2, "retain": 2, "holdout": 0}
    assert (found.told["known"], found.told["dropped"]) == (4, 1)
    assert "q3" not in {case.forget.id for case in (*found.forget, *found.retain)}
    named = split_known(lm, cases, forget_groups=["q0"], max_new_tokens=8)
    assert [case.forget.id for case in named.forget] == ["q0"]
    assert len(named.retain) == 3
    with pytest.raises(RetconError, match="answers 0 of 1 questions right"):
        split_known(lm, [cases[3]], max_new_tokens=8)
