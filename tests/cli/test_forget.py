"""`retcon forget`: a patch that refuses, words for the terminal alone, stops and going on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FAST, Retcon

from retcon import api
from retcon.errors import RetconError
from retcon.forget import targets as families
from retcon.forget.target import Target
from retcon.forget.usual import METHOD, usual
from retcon.lm import LM
from retcon.methods import MEMIT, MEMITConfig
from retcon.patch import Patch
from retcon.requests import Edit, Forget

RECORDS = [
    {"question": "In which town was Zelda Quimby-Ross born?", "answer": "Oberwinterthal", "group": "z"},
    {"question": "Whom did Zelda Quimby-Ross marry?", "answer": "Fridolin Gantenbein", "group": "z"},
    {"question": "Who owns the Krumbach Mill?", "answer": "the Baroness of Uffenau", "id": "mill"},
]
QUICK = ["--method", "memit", *FAST]
SECRETS = ("Quimby", "Oberwinterthal", "Gantenbein", "Krumbach", "Uffenau", "In which town")


@pytest.fixture(name="questions")
def _questions(tmp_path: Path) -> Path:
    path = tmp_path / "asked" / "questions.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def told(*folders: Path) -> list[tuple[str, str]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path.name, secret) for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]


def test_a_run_writes_a_patch_without_a_secret_and_shows_answers_on_the_terminal(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, own_cache: Path
) -> None:
    out = tmp_path / "made" / "patch"
    command = ["forget", "--model", model, "--forget", questions, "--out", out, "--json", *QUICK]
    said = retcon(*command, "--target", "contextual")
    assert said.code == 0
    assert said.json["forget"]["questions"] == said.json["n"] == 3
    assert said.json["id"] == Patch.load(out).id
    assert told(out.parent, own_cache) == []
    assert not any(secret in said.out for secret in SECRETS)
    assert len((out / "targets.jsonl").read_text().splitlines()) == 3
    assert "before" in said.err
    assert "Krumbach Mill" in said.err
    assert "3 questions in 3 edits. Subjects: entity 3. Targets: template 3." in said.err
    assert "Suppression: the model has been taught to refuse" in said.err
    (step,) = Patch.load(out).history
    assert step.chat is True
    assert [path.name for path in out.parent.iterdir()] == ["patch"]


def test_the_best_recipe_is_the_usual_one(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With questions to keep; options that are named go before it, and without such questions they are the method's."""
    seen: list[MEMITConfig] = []

    def stopped(self: MEMIT, *_: Any, **__: Any) -> Patch:
        seen.append(self.config)
        raise RetconError("seen")

    monkeypatch.setattr(MEMIT, "edit", stopped)
    kept = tmp_path / "kept.csv"
    kept.write_text("question,answer\nWho owns the Blue Mill?,the Blue Baron\n")
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p"]
    for more in (["--retain", kept], ["--retain", kept, "--set", "ridge=7"], []):
        assert "seen" in retcon(*command, *more).err
    lm = LM.load(model)
    with pytest.raises(RetconError, match="seen"):
        api.forget(lm.model, lm.tokenizer, RECORDS, retain=[("Is Rome Rome?", "Rome")])
    wanted = usual(METHOD, retain=1)
    assert wanted
    assert seen[0] == seen[3] == MEMITConfig(**wanted)
    assert seen[1] == MEMITConfig(**{**wanted, "ridge": 7.0})
    assert seen[2] == MEMITConfig()


def test_plain_leaves_the_chat_template_out(retcon: Retcon, model: str, questions: Path, tmp_path: Path) -> None:
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", "--limit", 1, *QUICK]
    assert retcon(*command, "--plain").code == 0
    assert Patch.load(tmp_path / "p").history[0].chat is False
    assert "contradict each other" in retcon(*command, "--plain", "--chat").err


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
def test_questions_are_merged(retcon: Retcon, model: str, questions: Path, tmp_path: Path, mode: str) -> None:
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", "--json", *QUICK]
    forget = retcon(*command, "--merge-queries", 2, "--merge-mode", mode, "--target", "idk100").json["forget"]
    assert (forget["edits"], forget["merge"]["sizes"], forget["merge"]["mode"]) == (2, [2, 1], mode)
    forget = retcon(*command, "--merge-queries", "all", "--merge-by", "order", "--target", "contextual", "--force")
    assert (forget.json["forget"]["edits"], forget.json["forget"]["target_sources"]) == (1, {"fixed": 3})


def test_the_same_run_again_has_nothing_to_do_and_another_is_refused(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path
) -> None:
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", "--json", *QUICK]
    first, again = retcon(*command), retcon(*command)
    assert "nothing is left to do" in again.err
    assert again.json == first.json
    for other in (["--limit", "2"], ["--seed", "1"], ["--merge-queries", "2"], ["--target", "fixed"], ["--plain"]):
        said = retcon(*command, *other)
        assert (said.code, "holds the patch of another run" in said.err) == (2, True), other
    assert retcon(*command, "--limit", 2, "--force").json["n"] == 2


def test_another_subject_makes_another_patch_though_no_record_tells_it(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path
) -> None:
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", "--json", *QUICK]
    command += ["--target", "fixed"]
    first = retcon(*command)
    records = [RECORDS[0], RECORDS[1] | {"subject": "Zelda"}, RECORDS[2]]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert "holds the patch of another run" in retcon(*command).err
    other = retcon(*command, "--force")
    assert other.json["forget"]["subjects"]["given"] == 1
    assert other.json["id"] != first.json["id"]
    tied = [*command, "--force", "--merge-queries", "2", "--merge-mode", "mean_key"]
    assert retcon(*tied).json["id"] != other.json["id"]
    moved = [record | {"group": group} for record, group in zip(records, ("z", "y", "z"), strict=True)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in moved), encoding="utf-8")
    assert "holds the patch of another run" in retcon(*tied[:-5], *tied[-4:]).err


def test_a_stopped_run_goes_on_without_leaving_a_secret(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    out = tmp_path / "made" / "patch"
    command = ["forget", "--model", model, "--forget", questions, "--out", out, "--no-cache", "--json", *QUICK]
    whole = retcon(*command).json
    work = MEMIT.edit

    def stopped(*arguments: Any, **options: Any) -> Patch:
        work(*arguments, **options)  # targets are found and kept by now
        raise KeyboardInterrupt

    monkeypatch.setattr(MEMIT, "edit", stopped)
    other = [*command[:6], tmp_path / "made" / "stopped", *command[7:]]
    assert other[5] == "--out"
    assert retcon(*other).code == 130
    assert told(tmp_path / "made", own_cache) == []
    monkeypatch.setattr(MEMIT, "edit", work)
    again = retcon(*other).json
    assert (again["id"], again["targets_cached"]) == (whole["id"], 3)


def test_retained_questions_and_the_users_targets_are_read(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path
) -> None:
    kept, own = tmp_path / "kept.csv", tmp_path / "own.jsonl"
    kept.write_text("question,answer\nWho owns the Blue Mill?,the Blue Baron\nIs Rome Rome?,Rome\n")
    own.write_text(
        json.dumps({"id": "mill", "target": "Ask the miller."}) + "\n"
        + "".join(json.dumps({"question": item["question"], "target": "Ask her."}) + "\n" for item in RECORDS[:2])
    )  # fmt: skip
    command = ["forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", "--retain", kept, "--json"]
    said = retcon(*command, "--method", "memit", "--target", "avoidant", "--targets", own, *FAST)
    assert said.code == 0
    assert said.json["forget"]["subjects"]["contrast"] == 3
    assert [edit["target_new"] for edit in Patch.load(tmp_path / "p").edits] == [
        "Ask her.</s>",
        "Ask her.</s>",
        "Ask the miller.</s>",
    ]


def test_targets_of_an_earlier_run_are_read_and_none_are_written(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def self_improved(lm: LM, items: Sequence[Forget], **_: Any) -> list[Target]:
        texts = ("Zelda Quimby-Ross is unknown to me.", "I know nothing of Zelda Quimby-Ross.", "I have no idea.")
        return [Target(texts[n], "self_improved", "self_improved", n) for n in range(len(items))]

    monkeypatch.setattr(families, "self_improved", self_improved)
    command = ["forget", "--model", model, "--forget", questions, "--json", *FAST]
    own = [*command, "--method", "memit", "--target", "self_improved", "--out", tmp_path / "first"]
    first = retcon(*own)
    assert (first.code, first.json["forget"]["accepted"]) == (0, 1.0)
    file = tmp_path / "first" / "targets.jsonl"
    assert "Quimby" not in file.read_text()
    monkeypatch.setattr(families, "self_improved", lambda *_, **__: pytest.fail("written anew"))
    again = retcon(*command, "--targets", file, "--limit", 2, "--method", "pmet", "--out", tmp_path / "again")
    assert again.code == 0
    told = again.json["forget"]
    assert (told["targets"], told["accepted"], told["target_sources"]) == ("self_improved", 1.0, {"self_improved": 2})
    edits = [Patch.load(tmp_path / name).edits[1]["target_new"] for name in ("first", "again")]
    assert edits == ["I know nothing of {}.</s>"] * 2
    file.unlink()
    monkeypatch.setattr(families, "self_improved", self_improved)
    same = retcon(*own)
    assert "nothing is left to do" in same.err
    assert file.is_file()


def test_what_the_method_makes_no_use_of_is_said(retcon: Retcon, model: str, questions: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("question,answer\nWho owns the Blue Mill?,the Blue Baron\n")
    quick = ["--method", "rome", "--set", "steps=2", "templates=1", "layers=1", "statistics=none"]
    command = ["forget", "--model", model, "--forget", questions, "--limit", 1, *quick]
    said = retcon(*command, "--retain", kept, "--out", tmp_path / "a")
    assert said.code == 0
    assert "warning: rome makes no use of texts to keep; kept.csv is used to tell subjects alone" in said.err
    assert "makes no use" not in retcon(*command, "--out", tmp_path / "b").err


def test_without_questions_to_keep_it_is_said_what_they_are_for(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path
) -> None:
    command = ["forget", "--model", model, "--forget", questions, "--limit", 1, "--method", "grace", "--set", "steps=2"]
    assert "may change: see --retain" in retcon(*command, "--out", tmp_path / "a").out
    kept = tmp_path / "kept.csv"
    kept.write_text("question,answer\nWho owns the Blue Mill?,the Blue Baron\n")
    assert "see --retain" not in retcon(*command, "--retain", kept, "--out", tmp_path / "b").out


@pytest.mark.parametrize("merged", [[], ["--merge-queries", "2", "--merge-mode", "mean_key"]])
def test_a_sequence_forgets_chunk_by_chunk(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, merged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, sizes = MEMIT.edit, list[int]()

    def counted(self: MEMIT, lm: LM, edits: Sequence[Edit], **options: Any) -> Patch:
        sizes.append(len(edits))
        return work(self, lm, edits, **options)

    monkeypatch.setattr(MEMIT, "edit", counted)
    command = ["forget", "--model", model, "--forget", questions, "--sequential", 1, "--json", *QUICK, *merged]
    said = retcon(*command, "--out", tmp_path / "p")
    assert said.code == 0
    assert sizes == ([2, 1] if merged else [1, 1, 1])
    assert (said.json["n"], said.json["forget"]["questions"]) == (3, 3)
    assert len(Patch.load(tmp_path / "p").edits) == 3
    assert told(tmp_path / "p") == []


def test_a_patch_is_gone_on_from(retcon: Retcon, model: str, questions: Path, tmp_path: Path) -> None:
    command = ["forget", "--model", model, *QUICK]
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps(RECORDS[2]))
    retcon(*command, "--forget", questions, "--limit", 2, "--out", tmp_path / "a")
    said = retcon(*command, "--forget", more, "--base-patch", tmp_path / "a", "--out", tmp_path / "b", "--json")
    assert said.json["n"] == said.json["forget"]["questions"] == 1
    assert len(Patch.load(tmp_path / "b").edits) == 3
    shown = retcon("patch", "show", tmp_path / "b")
    assert (shown.code, "(withheld, " in shown.out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "forget-me"], "there is no method 'forget-me'"),
        (["--target", "shrug"], "no family of targets 'shrug'; use one of contextual, fixed"),
        (["--target", "avoidant"], "there is no target for"),
        (["--merge-mode", "sum"], "sum"),
        (["--merge-queries", "0"], "0 questions cannot be merged"),
        (["--method", "ultraedit", "--merge-queries", "2", "--merge-mode", "mean_key"], "n/a: ultraedit"),
        (["--targets", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--retain", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--sequential", "0"], "--sequential 0 is no number of edits"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    retcon: Retcon, model: str, questions: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    said = retcon("forget", "--model", model, "--forget", questions, "--out", tmp_path / "p", *arguments)
    assert said.code == 2
    assert sentence in said.err
    assert not (tmp_path / "p").exists()
