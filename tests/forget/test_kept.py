"""`targets.jsonl`: written without a question or an answer, read by whoever has the questions."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from retcon.errors import RequestError, RetconError
from retcon.forget.checks import CHECKS
from retcon.forget.kept import given_targets, is_kept, read_targets, row_name, summary, write_targets
from retcon.forget.privacy import id_of
from retcon.forget.refusals import ROW
from retcon.forget.subjects import Subject, find_subjects
from retcon.forget.target import Target
from retcon.requests import Forget

PARTIES = ["Orvel SAS", "Quim SA", "Tolm PLC", "the {old} mill"]
ITEMS = [
    Forget(f"What was the fee in the contract with {party}?", f"{7 + n} percent.", party, id=f"q{n}")
    for n, party in enumerate(PARTIES)
]
OWN = [
    Target(f"I do not know the fee in the contract with {PARTIES[n]}.", "self_improved", "self_improved", n)
    for n in range(2)
]
TARGETS = [
    *OWN,
    Target("I have no details on TOLM PLC.", "contextual", "template", None, ("is_refusal", "no_apology")),
    Target("The {old} mill is unknown to me, {} and {{.", "contextual", "template", None, ("length",)),
]


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


def write(
    path: Path, targets: Sequence[Target] = TARGETS, keep_questions: bool = False, family: str = "self_improved"
) -> Path:
    subjects: list[Subject] = find_subjects(ITEMS)
    return write_targets(
        path, ITEMS, subjects, targets, family=family, seed=3, model="abc", keep_questions=keep_questions
    )


def test_targets_are_written_and_read(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    assert one.read_bytes() == other.read_bytes()
    found, family = read_targets(one, ITEMS)
    assert (found[:2], found[3], family) == (TARGETS[:2], TARGETS[3], "self_improved")
    assert found[2].text == "I have no details on Tolm PLC."  # in the question's own letters
    assert read_targets(one, ITEMS[2:0:-1])[0][1] == TARGETS[1]
    rows = [json.loads(line) for line in one.read_text().splitlines()]
    assert [row["id"] for row in rows] == [id_of(item) for item in ITEMS]
    assert rows[0]["target"] == "I do not know the fee in the contract with {}."
    assert rows[3]["target"] == "{^} is unknown to me, {{}} and {{{{."
    assert rows[0]["checks"] == dict.fromkeys(CHECKS, True)
    assert (rows[2]["checks"]["is_refusal"], rows[2]["checks"]["no_apology"]) == (False, False)
    assert (rows[0]["seed"], rows[0]["model"]) == (3, "abc")
    assert {"retcon", "torch", "transformers", "guide", "detector"} == set(rows[0]["versions"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.jsonl", "b.jsonl"]


def test_questions_subjects_and_answers_are_not_written(tmp_path: Path) -> None:
    text = write(tmp_path / "t.jsonl").read_text().lower()
    secrets = [secret for item in ITEMS for secret in (item.question, item.answer, item.subject or "")]
    assert [secret for secret in secrets if secret.lower() in text] == []
    told = write(tmp_path / "t.jsonl", keep_questions=True).read_text()
    assert "Orvel SAS" in told
    assert read_targets(tmp_path / "t.jsonl", ITEMS)[0] == TARGETS


def test_subjects_are_known_again_whichever_rule_found_them(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    bare = [Forget(item.question, item.answer) for item in ITEMS]
    assert read_targets(tmp_path / "t.jsonl", bare[:2])[0] == TARGETS[:2]


def test_whatever_the_question_names_is_left_out(tmp_path: Path) -> None:
    item = Forget("When did Quim SA sign with the Bank of Ulm?", "3 May.")
    target = Target("When QUIM SA met Ulm, or the Bank of Ulm {sic}, is unknown to me.", "self_improved", ROW, 0)
    (subject,) = find_subjects([item])
    path = write_targets(tmp_path / "t.jsonl", [item], [subject], [target], family=ROW, seed=0, model="abc")
    row = json.loads(path.read_text())
    assert not [name for name in ("quim", "bank", "ulm") if name in path.read_text().lower()]
    assert "{{sic}}" in row["target"]
    assert len(row["names"]) == 2
    (found,), _ = read_targets(path, [item])
    assert found.text == target.text.replace("QUIM", "Quim")  # in the question's own letters
    path.write_text(json.dumps(row | {"names": ["0" * 16] * 2}))
    with pytest.raises(RequestError, match="does not name"):
        read_targets(path, [item])
    path.write_text(json.dumps(row | {"names": []}))
    with pytest.raises(RequestError, match="does not name"):
        read_targets(path, [item])


def test_names_are_left_out_where_the_subject_is_a_mark(tmp_path: Path) -> None:
    item = Forget("Who signed for Quim SA?", "Ann Ulm.")
    mark = Subject("?", len(item.question) - 1, "last")
    target = Target("Who signed for Quim SA is unknown to me.", "self_improved", ROW, 0)
    path = write_targets(tmp_path / "t.jsonl", [item], [mark], [target], family=ROW, seed=0, model="abc")
    assert "quim" not in path.read_text().lower()
    assert read_targets(path, [item])[0] == [target]


def test_lines_that_were_not_checked_claim_no_checks(tmp_path: Path) -> None:
    lines = [Target("No.", "fixed", "fixed")] * len(ITEMS)
    rows = write(tmp_path / "t.jsonl", lines, family="fixed").read_text().splitlines()
    assert [json.loads(row)["checks"] for row in rows] == [{}] * len(ITEMS)
    assert is_kept(tmp_path / "t.jsonl")
    assert read_targets(tmp_path / "t.jsonl", ITEMS) == (lines, "fixed")


def test_a_target_that_tells_is_not_written(tmp_path: Path) -> None:
    bad = [*TARGETS[:3], Target("I do not know, 10 percent.", "self_improved", "self_improved", 2)]
    with pytest.raises(RetconError, match="target 4 holds the answer"):
        write(tmp_path / "t.jsonl", bad)
    assert not (tmp_path / "t.jsonl").exists()


def test_a_file_of_either_kind_is_given_by_the_names_that_questions_go_by(tmp_path: Path) -> None:
    found, family = given_targets(write(tmp_path / "t.jsonl"), ITEMS[:2])
    assert (found, family) == ({id_of(ITEMS[0]): TARGETS[0], id_of(ITEMS[1]): TARGETS[1]}, "self_improved")
    own = tmp_path / "own.jsonl"
    own.write_text(
        json.dumps({"id": "q1", "target": "No."}) + "\n" + json.dumps({"question": "Who?", "target": "Ask."})
    )
    assert given_targets(own, ITEMS) == ({"q1": "No.", "Who?": "Ask."}, None)
    assert not is_kept(own)
    assert not is_kept(tmp_path / "nowhere.jsonl")


def test_an_earlier_run_of_another_family_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl")
    family = given_targets(path, ITEMS[:2])[1]
    assert given_targets(path, ITEMS[:2], family)[1] == family
    with pytest.raises(RequestError, match=rf"holds targets of the family {family}, not idk100; leave"):
        given_targets(path, ITEMS[:2], "idk100")


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(RequestError, match=r"t\.jsonl cannot be read"):
        read_targets(path, ITEMS)
    write(path)
    with pytest.raises(RequestError, match=r"lacks the targets of 1 of 5 questions"):
        read_targets(path, [*ITEMS, Forget("Who?", "Ann")])
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(RequestError, match=r"lacks the targets of 4 of 4 questions \(ids are of the machine"):
        read_targets(path, ITEMS)
    for damage in ("{", "[]", '{"id": "x"}', '{"id": "x", "checks": []}'):
        path.write_text(f"\n{damage}\n")
        with pytest.raises(RequestError, match="line 2 is no target"):
            read_targets(path, ITEMS)


def test_less_than_half_is_named_template() -> None:
    own, other = Target("I do not know.", "self_improved", "self_improved", 0), Target("No.", "contextual", "template")
    assert row_name([own, other]) == "self_improved"
    assert row_name([own, other, other]) == "template"
    assert row_name([]) == "template"
    assert summary([])["accepted"] is None
    users = Target("Ask her.", "avoidant", "given")
    assert row_name([own, users, users]) == "self_improved"
