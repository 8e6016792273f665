"""What is forgotten, kept and left out: disjoint parts by groups, drawn by the seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RequestError
from retcon.forget_bench.contracts import contracts
from retcon.forget_bench.corpus import generated, split, split_files, with_general, write_split
from retcon.requests import ForgetCase, load_forget

CASES = contracts(6, attributes=3)


def groups(cases: list[ForgetCase]) -> set[str | None]:
    return {case.forget.group for case in cases}


def questions(cases: list[ForgetCase]) -> set[str]:
    return {case.forget.question for case in cases}


def test_no_question_is_in_two_parts_and_no_group_is_both_taught_and_left_out() -> None:
    found = split(CASES, forget_groups=2, retain_groups=2, holdout=4)
    assert found.counts() == {"forget": 6, "retain": 6, "holdout": 4}
    parts = [groups(part) for part in (found.forget, found.retain, found.holdout)]
    assert len(set[str | None]().union(*parts)) == sum(map(len, parts))
    assert found.told["groups"]["forget"] == sorted(str(name) for name in parts[0])
    assert [case for case in CASES if case in found.forget] == found.forget  # in the order of the file


def test_the_seed_draws_the_groups() -> None:
    cuts = [split(CASES, forget_groups=2, retain_groups=2, holdout=2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert cuts[0] == cuts[1]
    assert cuts[0].key() == cuts[1].key()
    assert len({cut.key() for cut in cuts}) > 2


def test_groups_and_single_questions_can_be_named() -> None:
    single = CASES[0].forget.id
    assert single is not None
    found = split(CASES, forget_groups=[single, "contract-0-03"], retain_groups=["contract-0-02"], holdout=1)
    assert questions(found.forget) == questions([CASES[0], *CASES[6:9]])
    assert questions(found.retain) == questions(CASES[3:6])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"forget_groups": 7}, "7 groups to forget are wanted and 6 are left"),
        ({"forget_groups": 0}, "0 groups to forget are wanted"),
        ({"forget_groups": 4, "retain_groups": 3}, "3 groups to retain are wanted and 2 are left"),
        ({"forget_groups": ["x"]}, "there is no group 'x' left to forget; there are contract-0-01, "),
        ({"forget_groups": ["contract-0-01"], "retain_groups": ["contract-0-01"]}, "no group 'contract-0-01' left to"),
        ({"forget_groups": 3, "retain_groups": 2, "holdout": 4}, "3 questions are left for a holdout of 4"),
    ],
)
def test_too_little_is_refused_with_the_numbers(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        split(CASES, **options)


def test_the_generated_corpus_has_just_what_is_needed() -> None:
    found = generated(forget_groups=2, retain_groups=1, holdout=5, attributes=4, seed=2)
    assert found.counts() == {"forget": 8, "retain": 4, "holdout": 5}
    assert found.told["contracts"] == 5
    assert generated(forget_groups=1, retain_groups=1, holdout=0, attributes=1).counts()["holdout"] == 0


def test_a_written_split_is_read_back(tmp_path: Path) -> None:
    found = generated(forget_groups=1, retain_groups=1, holdout=2, attributes=2)
    paths = write_split(found, tmp_path)
    assert [path.name for path in paths] == ["forget.jsonl", "retain.jsonl", "holdout.jsonl"]
    assert load_forget(paths[0]).items == found.forget
    assert load_forget(paths[2]).items == found.holdout


# ------------------------------------------------------------------------------------------------- files


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(name="pistol")
def _pistol(tmp_path: Path) -> Path:
    """Five contracts with two questions each, as PISTOL's: no paraphrase, no wrong answer."""
    records = [
        {
            "id": f"p-{n}-{what}",
            "question": f"What was the {what} of the contract between Xa{n} SAS and Yb{n} AG?",
            "answer": f"{what[0]}{n}.",
            "split": "sample",
            "edge": f"X_{n}",
            "entities": [f"Xa{n} SAS", f"Yb{n} AG"],
        }
        for n in range(5)
        for what in ("good", "price")
    ]
    return written(tmp_path / "pistol.jsonl", [*records, {"id": "bad", "question": "Is it a Yes?", "answer": "Yes"}])


def test_pistol_is_cut_by_edges_and_given_wrong_answers(pistol: Path) -> None:
    found, warnings = split_files(pistol, forget_groups=2, retain_groups=["X_0"], holdout=3)
    assert found.counts() == {"forget": 4, "retain": 2, "holdout": 3}
    assert found.told["given_wrong_answers"] == 9
    assert list(found.told["sha256"]) == ["pistol.jsonl"]
    assert any("stands in its own question" in warning for warning in warnings)
    for case in found.forget:
        assert len(case.perturbed_answers) == 4
        assert {text[0] for text in case.perturbed_answers} == {case.forget.answer[0]}
        assert case.forget.answer not in case.perturbed_answers


def test_tofu_forgets_authors_of_one_file_and_keeps_questions_of_others(tmp_path: Path) -> None:
    def record(n: int, author: str) -> dict[str, Any]:
        wrong = [f"No {i}." for i in range(5)]
        return {"id": f"t-{n}", "question": f"Q{n} on {author}?", "answer": f"Z{n}.", "subject": author,
                "paraphrased_answer": f"It is Z{n}.", "perturbed_answers": wrong}  # fmt: skip

    forget = written(tmp_path / "forget.jsonl", [record(n, "Ada" if n < 2 else "Bo") for n in range(4)])
    retain = written(tmp_path / "retain.jsonl", [record(n, "Cy") for n in range(10, 13)])
    hold = written(tmp_path / "hold.jsonl", [record(n, "Cy") for n in range(10, 17)])
    found, _ = split_files(
        forget, retain_corpus=retain, holdout_corpus=hold, forget_groups=None, retain_groups=None, holdout=3
    )
    assert found.counts() == {"forget": 4, "retain": 3, "holdout": 3}
    assert not questions(found.holdout) & questions(found.retain)
    assert found.told["given_wrong_answers"] == 0
    assert "Ada" not in json.dumps(found.told)
    one, _ = split_files(forget, retain_corpus=retain, forget_groups=["Bo"], retain_groups=None, holdout=0)
    assert [case.forget.id for case in one.forget] == ["t-2", "t-3"]


def test_general_questions_are_judged_by_and_taught_to_nobody(tmp_path: Path) -> None:
    record = {"question": "Where is the Eiffel Tower?", "answer": "Paris", "perturbed_answers": ["Rome"]}
    path = written(tmp_path / "world.jsonl", [record])
    made = generated(forget_groups=1, retain_groups=1, holdout=0, attributes=1)
    found, warnings = with_general(made, {"world_facts": path})
    assert (warnings, list(found.told["sha256"])) == ([], ["world.jsonl"])
    assert [case.forget.answer for case in found.general["world_facts"]] == ["Paris"]
    assert (found.forget, found.retain, found.counts()) == (made.forget, made.retain, made.counts())
    assert found.key() != made.key()
