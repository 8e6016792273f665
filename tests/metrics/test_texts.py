"""One way to write what is the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.metrics.texts import contains, mentions, normal, numbers


@pytest.mark.parametrize(
    "written",
    [
        "30 June 1975",
        "June 30, 1975",
        "June 30th 1975",
        "the 30th of June, 1975",
        "the 30th day of June of 1975",
        "30-Jun-1975",
        "Jun. 30, 1975",
        "1975-06-30",
        "06/30/1975",
        "30.06.1975",
        "30/6/1975",
        "1975 June 30",
    ],
)
def test_a_date_is_one_in_any_format(written: str) -> None:
    assert mentions(f"She was born on {written}, in Karachi.", "June 30, 1975")
    assert mentions("She was born on June 30, 1975.", f"{written}.")


def test_an_ambiguous_date_counts_in_either_reading() -> None:
    assert mentions("on 2 June 1998", "06-02-1998.")
    assert mentions("on 6 February 1998", "06-02-1998.")
    assert not mentions("on 6 March 1998", "06-02-1998.")


def test_part_of_a_date_stands_in_it() -> None:
    assert all(mentions("since 30 June 1975", part) for part in ("1975", "June 1975", "30 June", "06-30-1975"))
    assert not mentions("since June 1975", "30 June 1975")
    assert not mentions("since 30 June 1976", "June 1975")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("It costs $1,809.00 in all.", "1809"),
        ("It costs eighteen hundred and nine dollars", "1809"),
        ("one thousand eight hundred and nine", "1,809."),
        ("at two percent a month", "2%"),
        ("at 2 per cent", "2%."),
        ("within twenty-one days", "21"),
        ("in nineteen ninety-eight", "1998"),
        ("the twenty-first century", "21st century"),
        ("the nineteenth century", "19th century"),
        ("2.5 million people", "2,500,000"),
        ("no. 094", "94"),
        ("1\u202f809 dollars", "1809"),
        ("one day", "1"),
        ("\u1369 million", "\u1369 million"),
    ],
)
def test_a_number_is_one_in_any_format(text: str, phrase: str) -> None:
    assert mentions(text, phrase)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("No one told me", "1"),
        ("one of the parties", "1"),
        ("18090 dollars", "1809"),
        ("five, six", "56"),
        ("in 2.5 years", "2"),
        ("I second that", "2"),
    ],
)
def test_what_is_no_such_number(text: str, phrase: str) -> None:
    assert not mentions(text, phrase)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("it is in MALAGA", "Málaga."),
        ("by J.K. Rowling", "J. K. Rowling"),
        ("by J K Rowling", "J.K. Rowling"),
        ("Hina Ameen’s father", "Hina Ameen"),
        ("state of new york", "The State of New York."),
        ("an O’Hare flight", "O'Hare"),
        ("jeans and t-shirts", "T-shirts."),
        ("Ｐａｒｉｓ", "Paris"),
        ("gehört zur Straße", "STRASSE"),
        ("он живёт в Москве", "Москве"),
    ],
)
def test_case_accents_marks_and_articles_do_not_count(text: str, phrase: str) -> None:
    assert mentions(text, phrase)


def test_words_are_whole_and_in_order() -> None:
    assert not mentions("a Parisian café", "Paris")
    assert not mentions("York is new", "New York")
    assert not contains(["a"], [])


def test_a_phrase_without_words_is_looked_for_as_it_is() -> None:
    assert mentions("rated *****", "*****")
    assert not mentions("rated", "*****")
    assert not mentions("rated", " ")


def test_articles_alone_stay() -> None:
    assert normal("The A") == ("the", "a")
    assert mentions("the letter A", "A") is False  # among other words an article says nothing


def test_numbers_are_found_in_words_and_dates() -> None:
    assert numbers("on 3 May 2001 they paid thirty-six dollars") == {"m05d03", "2001", "36"}
    assert numbers("nothing here") == frozenset()


@given(st.text(max_size=60))
def test_any_text_has_a_normal_form_that_holds_itself(text: str) -> None:
    words = normal(text)
    assert all(word and not word.isspace() for word in words)
    assert mentions(text, text) is bool(text.strip())


@given(st.integers(0, 999_999_999))
def test_separators_do_not_change_a_number(value: int) -> None:
    assert normal(f"{value:,}") == normal(str(value)) == (str(value),)


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("Was it on 06/02/1998?", "06-02-1998.", True),
        ("Was it on 06/02/19981?", "06-02-1998.", False),
        ("Nothing is known", "No", False),
        ("No, it is not", "no", True),
        ("She lives in München-Ost", "MÜNCHEN", True),
        ("北京是中国的首都", "北京", True),
        ("서울은 한국의 수도이다", "서울", True),
        ("東京は日本の首都", "大阪", False),
        ("Is it 2%?", "2%.", True),
        ("Is it +?", "+", True),
        ("Is it -?", "+", False),
    ],
)
def test_a_question_that_holds_its_answer_is_seen_in_any_script(text: str, phrase: str, there: bool) -> None:
    assert mentions(text, phrase) is there
