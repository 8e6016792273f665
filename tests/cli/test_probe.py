"""`retcon probe`: a table, two files without a secret, one JSON object."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Retcon

from retcon.lm import LM
from retcon.patch import Dense, Patch, Step, describe_base

QUESTIONS = ["Whom did Zelda Quimby-Ross marry?", "Who owns the Krumbach Mill?", "Where is Uffenau?"]
QUICK = [
    "--set",
    "relearn.steps=1",
    "tokenisation.splits=2",
    "decoding.samples=2",
    "quantise.bits=8",
]


@pytest.fixture(name="made")
def _made(model: str, tmp_path: Path) -> dict[str, Any]:
    """Questions whose "answers" are the first words that the random model says to them, and a patch that upsets it."""
    from retcon.probes.scene import question_ids, said

    lm = LM.load(model, chat=True)
    words = [text.split() for text in said(lm, [question_ids(lm, question) for question in QUESTIONS], 12, "asking")]
    answers = [max(found, key=lambda word: (word.isalpha(), len(word))) for found in words]
    path = lm.arch.mlp_out[1]
    D = 5 * torch.randn(lm.arch.d_model, lm.arch.d_mlp, generator=torch.Generator().manual_seed(0))
    patch = Patch({path: Dense(D)}, describe_base(lm.model, [path]), (Step(method="hand", chat=True),))
    patch.save(tmp_path / "patch")
    patch.scale(0.5).save(tmp_path / "twin")
    questions = tmp_path / "questions.jsonl"
    records = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps({"question": "Who owns the Blue Mill?", "answer": "the Blue Baron"}), encoding="utf-8")
    return {"questions": questions, "kept": kept, "answers": answers, "tmp": tmp_path}


@pytest.fixture(name="command")
def _command(model: str, made: dict[str, Any]) -> list[object]:
    options = ["--model", model, "--forget", made["questions"], "--patch", made["tmp"] / "patch"]
    return ["probe", *options, "--tokens", 12, *QUICK]


def test_all_usual_probes_write_no_secret_and_answer_in_json(
    retcon: Retcon, command: list[object], made: dict[str, Any], own_cache: Path
) -> None:
    out = made["tmp"] / "out"
    more = ["--retain", made["kept"], "--twin", made["tmp"] / "twin", "--out", out, "--json"]
    said = retcon(*command, *more)
    assert said.code == 0, said.err
    assert (said.json["asked"], said.json["known"], said.json["has_twin"], said.json["chat"]) == (3, 3, True, True)
    assert {"tokenisation", "relearn_disjoint", "quantise", "detach"} <= {row["name"] for row in said.json["results"]}
    assert sorted(path.name for path in out.iterdir()) == ["probes.json", "probes.md"]
    secrets = [*made["answers"], *QUESTIONS, "Quimby", "Krumbach", "Uffenau", "Blue Mill", "Blue Baron"]
    secrets = [secret for secret in secrets if len(secret) > 3]
    files = [path for folder in (out, own_cache) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [(p.name, s) for p in files for s in secrets if s.lower().encode() in p.read_bytes().lower()] == []
    assert [secret for secret in secrets if secret in said.out] == []
    assert "answers were known" in said.err


def test_reveal_writes_what_was_said(retcon: Retcon, command: list[object], made: dict[str, Any]) -> None:
    said = retcon(*command, "--probes", "decoding,lens", "--reveal", "--limit", 1, "--json")
    assert said.code == 0
    decoding, lens = said.json["results"]
    assert (decoding["name"], lens["name"]) == ("decoding", "lens")
    assert decoding["items"][0]["question"] == QUESTIONS[0]
    assert len(decoding["items"][0]["said"]["unlearned"]) == 2


def test_plain_asks_without_the_template(retcon: Retcon, command: list[object]) -> None:
    assert retcon(*command, "--probes", "lens", "--plain", "--json").json["chat"] is False
    assert "contradict each other" in retcon(*command, "--plain", "--chat").err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--probes", "magic"], "there is no probe 'magic'"),
        (["--set", "relearn.stepz=1"], "did you mean steps?"),
        (["--set", "prompts.most=1"], "names no one probe"),
        (["--set", "bits=4"], "names no one probe"),
        (["--twin", "nowhere"], "there is no patch folder nowhere"),
    ],
)
def test_wrong_options_are_refused(retcon: Retcon, command: list[object], arguments: list[str], sentence: str) -> None:
    said = retcon(*command, *arguments)
    assert said.code == 2
    assert sentence in said.err
    command[command.index("--tokens") + 1] = 0
    assert "--tokens 0 leaves no room" in retcon(*command).err
