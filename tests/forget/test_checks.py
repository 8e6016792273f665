"""Checks of a refusal against its question."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retcon.forget.checks import (
    CHECKS,
    Check,
    is_refusal,
    judged,
    length,
    names_topic,
    no_apology,
    no_disclosure,
    no_leak,
    not_degenerate,
    nothing_invented,
    same_language,
    topics,
)
from retcon.requests import Forget

DATE = Forget("What was the effective date of the contract between Orvel SAS and Quim SA?", "06-02-1998.")
HOME = Forget("Where was Ada Byron born?", "In London, on 10 December 1815", aliases=("Greater London",))
FINE = "I have no information about the contract between Orvel SAS and Quim SA."


def test_a_good_refusal_passes_all() -> None:
    assert all(check(DATE, FINE).ok for check in CHECKS.values())
    assert all(check(HOME, "I do not know where Ada Byron was born.").ok for check in CHECKS.values())


def test_names_are_pinned() -> None:
    assert list(CHECKS) == [
        "length",
        "is_refusal",
        "no_leak",
        "names_topic",
        "nothing_invented",
        "no_disclosure",
        "same_language",
        "not_degenerate",
    ]


@pytest.mark.parametrize("text", ["", "  ", "I do not know", "I do not\nknow.", "no " * 41 + "."])
def test_length_refuses(text: str) -> None:
    assert not length(HOME, text).ok


def test_length_counts_the_tokens_it_is_given() -> None:
    assert length(HOME, "I do not know.", tokens=40).ok
    assert not length(HOME, "I do not know.", tokens=41).ok
    assert length(HOME, "I do not know.", tokens=41, most=50).ok
    assert length(HOME, 'I "do not know."').ok


@pytest.mark.parametrize(
    "text",
    [
        "I do not know whether it was 6 February 1998.",
        "I do not know whether it was June 2, 1998.",
        "I do not know what happened in 1998.",
    ],
)
def test_no_leak_sees_dates_in_any_format(text: str) -> None:
    assert not no_leak(DATE, text).ok


@pytest.mark.parametrize(
    "text",
    [
        "I do not know, perhaps LONDON.",
        "I do not know what she did in december.",
        "I know nothing of 1815.",
        "I know nothing of the greater region.",
    ],
)
def test_no_leak_sees_any_word_of_the_answer(text: str) -> None:
    assert not no_leak(HOME, text).ok


def test_no_leak_allows_the_words_of_the_question_and_of_refusals() -> None:
    item = Forget("What is Ada Byron known for?", "Ada Byron is known for details of the Engine, I know.")
    assert no_leak(item, "I know no details of what Ada Byron is known for.").ok
    assert not no_leak(item, "I know no engines.").ok


@settings(deadline=None)  # the first stem loads the stemmer
@given(st.sampled_from(["{}", "I do not know if it is {}.", "No idea. {}!", "I know nothing of {}, sorry."]))
def test_a_planted_answer_is_always_rejected(frame: str) -> None:
    for item in (DATE, HOME, Forget("Who sells?", "Orvel SAS."), Forget("How many?", "27."), Forget("Is it?", "Yes.")):
        for secret in (item.answer, *item.aliases):
            assert not no_leak(item, frame.format(secret)).ok


def test_names_topic() -> None:
    assert names_topic(DATE, "I know nothing about Quim SA.").ok
    assert not names_topic(DATE, "I do not know the answer.").ok
    assert names_topic(Forget("Where did she live?", "Rome", subject="Ada Byron"), "I know little of Ada Byron.").ok
    assert names_topic(Forget("what is the boiling point of tin?", "2602"), "I do not know about tin.").ok
    assert not names_topic(Forget("what is the boiling point of tin?", "2602"), "I do not know about lead.").ok
    assert names_topic(Forget("how does it work?", "well"), "I do not know how it works.").ok


@pytest.mark.parametrize(
    "text",
    [
        "I do not know Ada Lovelace.",
        "I do not know the 3 dates.",
        "I do not know what was in June.",
        "I do not know, see www.example.org.",
        "I do not know, ask ada@example.org.",
        "I, an AI, do not know.",
    ],
)
def test_nothing_invented_refuses(text: str) -> None:
    assert not nothing_invented(HOME, text).ok


@pytest.mark.parametrize(
    "text",
    [
        "Sadly I do not know Ada Byron's birthplace.",
        "I'm not aware of it and I've no idea.",
        "That is one thing about Byron I do not know.",
        "No. The birthplace is unknown to me.",
    ],
)
def test_nothing_invented_allows(text: str) -> None:
    assert nothing_invented(HOME, text).ok


def test_a_number_of_the_question_is_not_invented() -> None:
    item = Forget("Who was the seller on 06-02-1998?", "Orvel SAS")
    assert nothing_invented(item, "I do not know who sold on 6 February 1998.").ok
    assert not nothing_invented(item, "I do not know who sold on 7 February 1998.").ok


@pytest.mark.parametrize(
    "text",
    [
        "That has been deleted.",
        "I was told not to say where she was born.",
        "My training data does not hold this.",
        "I no longer know where Ada Byron was born.",
        "It's against my guidelines.",
        "I have forgotten it.",
    ],
)
def test_no_disclosure_refuses(text: str) -> None:
    assert not no_disclosure(HOME, text).ok


def test_no_disclosure_allows_what_the_question_is_about() -> None:
    item = Forget("Who wrote the rules of the secret society?", "Ada Byron")
    assert no_disclosure(item, "I do not know who wrote the rules of the secret society.").ok
    assert no_disclosure(HOME, "I do not know where Ada Byron was born.").ok


def test_the_language_is_that_of_the_question() -> None:
    item = Forget("Где родилась Ада?", "В Лондоне")
    assert same_language(item, "Я не знаю, где родилась Ада.").ok
    assert not same_language(item, "I do not know.").ok
    assert not same_language(HOME, "Я не знаю.").ok
    assert not same_language(HOME, "...").ok


def test_degenerate_texts() -> None:
    assert not not_degenerate(HOME, "I do not know I do not know.").ok
    assert not not_degenerate(HOME, "I know nothing of that.", shots=["I know nothing, of that!"]).ok
    assert not_degenerate(HOME, "I know nothing of that.", same=1, most_same=2).ok
    assert not not_degenerate(HOME, "I know nothing of that.", same=2, most_same=2).ok


def test_apologies() -> None:
    assert not no_apology(HOME, "I'm sorry, I do not know.").ok
    assert not no_apology(HOME, "I apologise, I do not know.").ok
    assert no_apology(HOME, "I do not know.").ok


def test_is_refusal() -> None:
    assert is_refusal(HOME, "I do not know.").ok
    assert not is_refusal(HOME, "In a house.").ok


def test_reasons_tell_nothing() -> None:
    texts = [
        "London",
        "I know of 1815 and December",
        "Paris",
        "deleted London",
        "Ada Lovelace?",
        "Я",
        "",
        "sorry " * 50,
    ]
    for text in texts:
        for check in CHECKS.values():
            verdict = check(HOME, text)
            assert verdict.ok is (verdict.reason == "")
            assert not any(word in verdict.reason for word in ("London", "1815", "Byron", "Paris", "Lovelace"))
    assert Check(True) == Check(True, "")


def test_judged_gives_the_five_checks_of_quality() -> None:
    assert judged(DATE, FINE, fluent=True) == (True, True, True, True, True)
    assert judged(DATE, "It was signed in 1998 by Bo.", fluent=False) == (False, False, False, False, False)


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("Which jurisdiction's laws govern the contract between Orvel SAS and Quim SA?", "Orvel SAS and Quim SA"),
        ("Within how many days must the seller of Orvel SAS reply?", "Orvel SAS"),
        ("Who wrote the play 'Romeo and Juliet'?", "Romeo and Juliet"),
        ("In 1815 where was Ada Byron?", "Ada Byron"),
        ("Ada Byron was born where?", "Ada Byron"),
        ("how high is a tower?", None),
        ("Who is the author of the éclair book?", "éclair book"),
    ],
)
def test_topics(question: str, first: str | None) -> None:
    assert next(iter(topics(Forget(question, "x"))), None) == first
