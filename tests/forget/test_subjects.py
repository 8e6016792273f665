"""Subjects of questions, in tables: TOFU-like, PISTOL-like, factual, and questions that name nothing."""

import pytest

from retcon.forget.subjects import Subject, candidates, find_subjects
from retcon.requests import Forget


def found(question: str, *, subject: str | None = None, retain: tuple[str, ...] = (), more: int = 0) -> Subject:
    items = [Forget(question, "secret", subject), *[Forget(f"{question} ({n})", "secret") for n in range(more)]]
    one = find_subjects(items, retain)[0]
    assert question[one.start : one.end] == one.text
    return one


@pytest.mark.parametrize(
    ("question", "subject", "source"),
    [
        # as in PISTOL
        ("What was the effective date of the contract between Qvarnt SAS and Lumeko SA?", "Lumeko SA", "entity"),
        ("What was the address of Qvarnt SAS in the contract with Lumeko SA?", "Lumeko SA", "entity"),
        ("Who sold the goods to Lumeko SA as of 03-04-1999?", "03-04-1999", "entity"),
        ("When did Zarrow Ltd. pay?", "Zarrow Ltd.", "entity"),
        ("Where is Mibbet & Tolv GmbH registered?", "Mibbet & Tolv GmbH", "entity"),
        # as in TOFU
        ("What gender is author Orsola Bentivegna-Ruiz?", "Orsola Bentivegna-Ruiz", "entity"),
        ("What do Orsola Bentivegna-Ruiz's parents do?", "Orsola Bentivegna-Ruiz", "entity"),
        ("Did the novelist who was born in Quito on the 7th of May, 1961 win it?", "7th of May, 1961", "entity"),
        ("What is her novel 'The Glass Orchard' about?", "The Glass Orchard", "entity"),
        ('Which prize did "A Debt\'s End" win?', "A Debt's End", "entity"),
        ("Does Jean de la Tour write?", "Jean de la Tour", "entity"),
        # facts
        ("Who wrote 'Pride and Prejudice'?", "Pride and Prejudice", "entity"),
        ("Where would you find the Eiffel Tower?", "Eiffel Tower", "entity"),
        ("What is the capital of Australia?", "Australia", "entity"),
        ("In which city was John F. Kennedy shot?", "John F. Kennedy", "entity"),
        ("Where was C.S. Lewis born?", "C.S. Lewis", "entity"),
        ("In which year was the first iPhone released?", "iPhone", "entity"),
        ("Who was in charge of Apollo 11?", "Apollo 11", "entity"),
        ("What does error E-4042 mean?", "E-4042", "entity"),
        ("Где родилась Ада Лавлейс?", "Ада Лавлейс", "entity"),
        # nothing named
        ("who developed the theory of relativity?", "relativity", "tail"),
        ("what is known about black holes, briefly?", "black holes", "tail"),
        ("which river is the longest in the world?", "world", "word"),
        ("what happened?", "happened", "word"),
        ("Who is it?", "?", "last"),
        ("why not", "not", "last"),
    ],
)
def test_the_cascade(question: str, subject: str, source: str) -> None:
    one = found(question)
    assert (one.text, one.source) == (subject, source)


def test_a_given_subject_wins_in_the_spelling_of_the_question() -> None:
    one = found("Where was ada lovelace born?", subject="Ada Lovelace")
    assert (one.text, one.source) == ("ada lovelace", "given")
    one = found("Is Rome, not rome, the Rome of today?", subject="Rome")
    assert (one.start, one.source) == (23, "given")


def test_a_subject_stands_as_a_word_of_its_own() -> None:
    def found(question: str, subject: str) -> tuple[str, int, str]:
        (one,) = find_subjects([Forget(question, "in May", subject=subject)])
        return one.text, one.start, one.source

    assert found("When did Ann sell the Annex?", "Ann") == ("Ann", 9, "given")
    assert found("Who is Hannah?", "Ann")[2] != "given"
    assert found("Whom did annan meet?", "Anna") == ("anna", 9, "given")  # an ending was added to it
    assert found("東京都はどこにありますか", "京都") == ("京都", 1, "given")  # no script of spaces
    assert found("What is C++ for?", "C++") == ("C++", 8, "given")
    (one,) = find_subjects([Forget("Did Ann leave for Annapolis?", "no")])
    assert "Did Ann leave for Annapolis?"[one.start :].startswith(one.text)


def test_a_given_subject_that_the_question_does_not_hold_gives_way() -> None:
    """TOFU's first question on an author asks for the name, which is the subject and the secret."""
    one = found("Who is the author born in Quito on 05/07/1961?", subject="Orsola Bentivegna-Ruiz")
    assert (one.text, one.source) == ("05/07/1961", "entity")


def test_of_several_places_the_last_counts() -> None:
    one = found("Is Lumeko SA the Lumeko SA of 'x'?")
    assert (one.text, one.start) == ("x", 31)
    assert found("Is Lumeko SA the same as Lumeko SA?").start == 25


def test_questions_to_keep_tell_what_is_particular() -> None:
    question = "What was the price in the contract between Qvarnt SAS and Lumeko SA?"
    keep = tuple(f"What did Lumeko SA sell in the year {year}?" for year in range(1990, 1999))
    assert found(question, retain=keep).text == "Qvarnt SAS"
    assert found(question, retain=keep).source == "contrast"
    other = tuple(text.replace("Lumeko SA", "Qvarnt SAS") for text in keep)
    assert found(question, retain=other).text == "Lumeko SA"
    assert found(question, retain=("Who sings?",)).text == "Lumeko SA"  # a tie: the later, whose token has seen both


def test_what_all_questions_share_beats_what_one_has() -> None:
    items = [Forget(f"Did Orsola Ruiz live in {city}?", "secret") for city in ("Quito", "Lima", "Rome")]
    keep = ("Is Paris old?", "Is Oslo cold?")
    assert {one.text for one in find_subjects(items, keep)} == {"Orsola Ruiz"}


def test_candidates_are_runs_and_their_parts_but_not_between() -> None:
    def texts(question: str) -> set[str]:
        return {question[start:end] for start, end in candidates(question)}

    assert texts("Did Romeo and Juliet die?") == {"Romeo and Juliet", "Romeo", "Juliet"}
    assert texts("What lies between Peru and Chile?") == {"Peru", "Chile"}
    assert texts("Was Ada's Engine built?") == {"Ada", "Engine"}
    assert texts("Which one?") == set()
    assert texts("In June 1944, who led?") == {"June 1944", "1944"}


@pytest.mark.parametrize("question", ["?", "…", "a", "  Who", "{}", "北京是哪个国家的首都？", "Is it '' or \"\"?"])
def test_every_question_has_a_subject(question: str) -> None:
    assert found(question).text.strip()
