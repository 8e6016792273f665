"""Questions to forget: what is accepted, what is refused, and in which words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RequestError
from retcon.requests import (
    Forget,
    ForgetCase,
    GivenTarget,
    check_forgets,
    forget_case_from_dict,
    forget_from_dict,
    load_forget,
    load_retain,
    load_targets,
)

ADA = {"question": "Where was Ada Lovelace born?", "answer": "London"}
BEN = {"question": "Who made Big Ben?", "answer": "Denison", "id": 7, "edge": "A_B", "entities": ["Big Ben"]}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forget.jsonl"


def test_a_method_sees_the_question_and_the_judge_the_rest(file: Path) -> None:
    judged = {
        "paraphrased_question": "What is Ada's place of birth?",
        "paraphrased_answer": "It is London.",
        "perturbed_answers": ["It is Paris.", "It is Rome."],
        "split": "forget01",
        "subject": "Ada Lovelace",
        "aliases": ["Greater London"],
    }
    (ada, ben) = load_forget(jsonl(file, ADA | judged, BEN)).items
    assert ada == ForgetCase(
        Forget(ADA["question"], "London", "Ada Lovelace", ("Greater London",)),
        ("What is Ada's place of birth?",),
        "It is London.",
        ("It is Paris.", "It is Rome."),
        "forget01",
    )
    assert (ben.forget.group, ben.forget.id, ben.entities) == ("A_B", "7", ("Big Ben",))
    assert forget_from_dict(BEN) == ben.forget
    assert forget_case_from_dict(ADA | {"paraphrased_question": ["A?", "B?"]}).paraphrases == ("A?", "B?")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"anwser": "x"}, 'unknown key "anwser"; did you mean "answer"?'),
        ({"colour": "x"}, 'unknown key "colour"; known are id, question, answer, subject, aliases, group'),
        ({"group": "a", "edge": "b"}, 'the record has "edge" and "group", which mean the same; keep one'),
        ({"answer": 1999}, '"answer" must be text in quotes, not 1999'),
        ({"answer": " "}, "the answer is empty; write it out"),
        ({"aliases": "London"}, '"aliases" must be a list in [ ], not "London"'),
        ({"perturbed_answers": ["a", 3]}, '"perturbed_answers[1]" must be text in quotes, not 3'),
        ({"paraphrased_question": [""]}, "a paraphrase is empty"),
        ({"answer": "ada LOVELACE"}, "the answer 'ada LOVELACE' stands in its own question"),
    ],
)
def test_a_wrong_record_names_its_line_its_key_and_the_cure(file: Path, change: dict[str, Any], sentence: str) -> None:
    jsonl(file, BEN, ADA | change)
    with pytest.raises(RequestError) as caught:
        load_forget(file)
    assert f"forget.jsonl line 2: {sentence}" in str(caught.value)
    loaded = load_forget(file, skip_bad=True)
    assert ([case.forget.id for case in loaded.items], len(loaded.skipped)) == (["7"], 1)


def test_a_missing_answer_is_named(file: Path) -> None:
    with pytest.raises(RequestError, match='line 1: "answer" is missing; add it'):
        load_forget(jsonl(file, {"question": "Who?"}))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_csv_has_questions_answers_and_groups(tmp_path: Path, suffix: str) -> None:
    text = 'question,answer,subject,edge\nWhere was Ada born?,London,Ada,\n"Who, then?",Ben,,A_B\n'
    path = tmp_path / f"forget{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert [case.forget for case in load_forget(path).items] == [
        Forget("Where was Ada born?", "London", "Ada"),
        Forget("Who, then?", "Ben", group="A_B"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt,answer\n", 'line 1: the header has no "question"; name the columns there, of id, question, answer'),
        ("question,aliases\n", 'line 1: unknown column "aliases"; a CSV has id, question, answer'),
        ("question,answer\nWho?,\n", "line 2: the answer is empty"),
        ("", "forget.csv is empty; write one record a line, such as Where was"),
    ],
)
def test_a_wrong_csv_names_the_line_and_the_cure(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "forget.csv"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_forget(path)
    assert sentence in str(caught.value)


def test_different_answers_to_one_question_are_refused_with_both_lines_named(file: Path) -> None:
    jsonl(file, ADA, BEN, ADA | {"answer": "Paris"})
    with pytest.raises(RequestError) as caught:
        load_forget(file)
    assert str(caught.value) == (
        "forget.jsonl: line 1 and line 3 give 'Where was Ada Lovelace born?' different answers ('London', 'Paris'); "
        "remove one, or ask to keep the last"
    )
    loaded = load_forget(file, conflicts="last")
    assert [case.forget.answer for case in loaded.items] == ["Denison", "Paris"]
    assert loaded.warnings == ["forget.jsonl: line 3 overrules line 1: 'Where was Ada Lovelace born?' -> 'Paris'"]


def test_a_question_that_is_repeated_is_kept_once_and_a_repeated_id_only_warned_of() -> None:
    ada, ben = Forget(ADA["question"], "London", id="a"), Forget("Who made Big Ben?", "Denison", id="a")
    kept, warnings = check_forgets([ada, ada, ben])
    assert kept == [0, 2]
    assert [warning.split(":")[0] for warning in warnings] == [
        "question 2 repeats question 1 and is left out",
        "question 3 has the id of question 1, 'a'",
    ]
    with pytest.raises(RequestError, match="one of 'error', 'last'"):
        check_forgets([], "first")  # type: ignore[arg-type]


def test_questions_to_keep_may_hold_their_answers_and_contradict_each_other(file: Path) -> None:
    jsonl(file, {"question": "Is Rome old?", "answer": "Rome is old."}, ADA, ADA | {"answer": "Ada Lovelace"})
    assert len(load_retain(file).items) == 3


def test_targets_of_the_user_are_read_with_what_they_are_for(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "t.jsonl", {"id": 3, "target": " No. "}, {"question": "Who? ", "target": "No.", "attempt": 2}
    )
    assert load_targets(path).items == [GivenTarget("No.", None, "3"), GivenTarget("No.", "Who?")]
    path = tmp_path / "t.csv"
    path.write_text("question,target\nWho?,No.\n")
    assert load_targets(path).items == [GivenTarget("No.", "Who?")]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([{"target": "No."}], 'line 1: the target has neither "question" nor "id"; add one'),
        ([{"id": "a", "target": " "}], 'line 1: "target" is empty'),
        ([{"id": "a", "text": "No."}], 'line 1: "target" is missing; add it'),
        ([{"id": "a", "target": "x"}, {"id": "a", "target": "y"}], "line 1 and line 2 give one question different"),
    ],
)
def test_wrong_targets_name_the_line(tmp_path: Path, records: list[dict[str, str]], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_targets(jsonl(tmp_path / "t.jsonl", *records))
    assert sentence in str(caught.value)
