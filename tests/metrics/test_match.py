"""Free-running answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.match import gen_contains, gen_exact, gen_start


@pytest.mark.parametrize(
    ("text", "answers", "begins"),
    [
        (" Rome, the capital of", ["Rome"], 1.0),
        (" the city of Rome", ["Rome"], 0.0),
        (" Romeo and", ["Rome"], 0.0),
        ("THE UNITED STATES of", ["United States"], 1.0),
        (" the U.S. and", ["United States", "U.S."], 1.0),
        ("São Paulo.", ["Sao Paulo"], 1.0),
        (" J.K. Rowling's book", ["J. K. Rowling"], 1.0),
        ("St. Louis, Missouri", ["St. Louis"], 1.0),
        ("eleven players", ["11"], 1.0),
        ("1,809 dollars", ["1809"], 1.0),
        ("June 30, 1975", ["30 June 1975"], 1.0),
        ("東京です", ["東京"], 1.0),
        ("$ and more", ["$"], 1.0),
        ("", ["Rome"], 0.0),
        ("\n\nRome", ["Rome"], 1.0),
        (" 'Rome'", ["Rome"], 1.0),
        (" December 25", ["December"], 1.0),
        (" May 5th, 1990", ["May"], 1.0),
        (" 5 May 1990", ["May 5, 1990"], 1.0),
        (" O, H and N", ["O"], 1.0),
        (" C. C is carbon", ["C"], 1.0),
        (" A is the first", ["A"], 1.0),
        (" an apple", ["A"], 0.0),
        (" C# and Java", ["C++"], 0.0),
        (" C++ and Java", ["C"], 0.0),
        (" C++, of course", ["C++"], 1.0),
        (" -5 degrees", ["5"], 0.0),
        (" 5 degrees", ["-5"], 0.0),
        (" \u22125 degrees", ["-5"], 1.0),
        (" मामा है", ["मेम"], 0.0),
        (" मामा है", ["मामा"], 1.0),
        (" กินข้าว", ["กัน"], 0.0),
        (" กินข้าว", ["กิน"], 1.0),
    ],
)
def test_a_text_begins_with_an_answer(text: str, answers: list[str], begins: float) -> None:
    assert gen_start(text, answers) == begins


def test_any_alias_counts_and_no_answer_is_not_judged() -> None:
    assert gen_start("UK", ["United Kingdom", "UK"]) == 1.0
    assert gen_start("UK", ["United Kingdom"]) == 0.0
    assert gen_start("UK", []) is None
    assert gen_contains("UK", []) is None
    assert gen_exact("UK", [], stopped=True) is None


def test_exact_wants_the_whole_text_and_a_natural_stop() -> None:
    assert gen_exact(" the Rome.", ["Rome"], stopped=True) == 1.0
    assert gen_exact("Rome", ["Rome"], stopped=False) == 0.0
    assert gen_exact("Rome and more", ["Rome"], stopped=True) == 0.0
    assert gen_exact("!", ["!"], stopped=True) == 1.0


answers = st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "Z")), max_size=12)


@given(answers, answers)
def test_exact_is_within_start_is_within_contains_for_plain_words(text: str, answer: str) -> None:
    exact, start = gen_exact(text, [answer], stopped=True), gen_start(text, [answer])
    assert exact is not None
    assert start is not None
    if answer.strip():
        assert exact <= start
    else:
        assert exact == start == 0.0


@given(answers)
def test_an_answer_alone_is_said(answer: str) -> None:
    if answer.strip():
        assert gen_exact(answer, [answer], stopped=True) == gen_start(answer, [answer]) == 1.0
