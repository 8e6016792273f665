"""Cases and questions as JSONL, and back."""

import json
from pathlib import Path

from retcon.requests import Case, Edit, Forget, ForgetCase, Probe, load_cases, load_forget
from retcon.sets import export
from retcon.storage import file_sha256

CASE = Case(
    Edit("The capital of {} is", "Perú", "Rome", "Lima", "capital", "x-1"),
    ("So is Perú's",),
    (Probe("The capital of Chile is", ("Santiago",)), Probe("The capital of Cuba is", ("Havana", "La Habana"))),
    ("In Perú",),
    (Probe("The river of Perú's capital is the", ("Tiber", "Tevere"), "two-hop"),),
    "mine",
    ("Roma",),
)
QUESTION = ForgetCase(
    Forget("Who wrote it?", "Jo Doe", "it", ("J. Doe",), "A_B", "q-1"),
    ("Whose is it?",),
    "It is by Jo Doe.",
    ("It is by Al Roe.",),
    "forget10",
    ("A", "B"),
)


def test_cases_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    assert export([CASE], path) == file_sha256(path)
    assert load_cases(path).items == [CASE]
    record = json.loads(path.read_text("utf-8"))
    assert record["neighbours"][0] == {"prompt": "The capital of Chile is", "answer": "Santiago"}
    assert record["portability"][0]["kind"] == "two-hop"
    assert "Perú" in path.read_text("utf-8")


def test_a_bare_case_has_its_empty_lists(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    bare = Case(Edit("The sky is", target="green"))
    export([bare], path)
    assert load_cases(path).items == [bare]
    assert json.loads(path.read_text())["portability"] == []


def test_questions_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    export([QUESTION, ForgetCase(Forget("Where?", "Here"))], path)
    assert load_forget(path).items == [QUESTION, ForgetCase(Forget("Where?", "Here"))]
