"""`retcon eval --forget`: figures of forgetting, files without a secret, a reference from run to run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FAST, Retcon

from retcon import forget_bench
from retcon.evaluate import ForgetReport, Reference
from retcon.forget_bench import Teaching
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import ForgetCase
from retcon.storage import file_sha256

RECORDS: list[dict[str, Any]] = [
    {"question": "In which town was Zelda Quimby-Ross born?", "answer": "Oberwinterthal", "group": "z",
     "perturbed_answers": ["Lima", "Rome"]},
    {"question": "Whom did Zelda Quimby-Ross marry?", "answer": "Fridolin Gantenbein", "group": "z",
     "paraphrased_question": "Who is the husband of Zelda Quimby-Ross?", "perturbed_answers": ["a teacher", "Apple"]},
    {"question": "Who owns the Krumbach Mill?", "answer": "the Baroness of Uffenau", "aliases": ["Lady Uffenau"],
     "perturbed_answers": ["Nokia", "the city"]},
]  # fmt: skip
RETAIN = [
    {"question": "Who made Big Ben?", "answer": "an engineer"},
    {"question": "Is Rome old?", "answer": "Yes, Rome is"},
]
HOLDOUT = [{"question": "Who is Ida Falk?", "answer": "a teacher"}, {"question": "Where is the sea?", "answer": "near"}]
SECRETS = (
    "Quimby", "Oberwinterthal", "Gantenbein", "Fridolin", "Krumbach", "Uffenau", "In which town", "husband",
)  # fmt: skip
SHORT = ["--max-new-tokens", "6"]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(name="asked")
def _asked(tmp_path: Path) -> Path:
    return written(tmp_path / "asked" / "forget.jsonl", RECORDS)


@pytest.fixture(name="kept")
def _kept(tmp_path: Path) -> Path:
    return written(tmp_path / "asked" / "retain.jsonl", RETAIN)


@pytest.fixture(name="held")
def _held(tmp_path: Path) -> Path:
    return written(tmp_path / "asked" / "holdout.jsonl", HOLDOUT)


def told(*folders: Path) -> list[tuple[str, str]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        (path.name, word) for path in files for word in SECRETS if word.lower().encode() in path.read_bytes().lower()
    ]


def test_a_patch_is_judged_and_nothing_that_is_written_tells_a_secret(
    retcon: Retcon, model: str, asked: Path, kept: Path, held: Path, tmp_path: Path, own_cache: Path
) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    assert (
        retcon(
            "forget", "--model", model, "--forget", asked, "--retain", kept, "--out", made, "--method", "memit", *FAST
        ).code
        == 0
    )
    command = ["eval", "--model", model, "--forget", asked, "--retain", kept, "--patch", made, *SHORT]
    said = retcon(*command, "--holdout", held, "--metrics", "all", "--out", out, "--json")
    assert said.code == 0
    found = said.json
    assert list(found)[:7] == ["n", "known", "metrics", "before", "intervals", "not_applicable", "seconds"]
    assert (found["n"], found["provenance"]["asked"]) == (3, "chat")
    assert set(found["metrics"]) == set(found["before"])
    assert {name for name, value in found["metrics"].items() if value is None} == set(found["not_applicable"])
    assert found["provenance"]["kind"].startswith("Suppression")
    assert "sha256" not in found["provenance"]["files"]["forget"]
    assert found["provenance"]["files"]["retain"]["sha256"] == file_sha256(kept)
    assert sorted(path.name for path in out.iterdir()) == ["card.md", "report.html", "report.json", "report.md"]
    assert told(out, own_cache, made) == []
    assert not any(secret in said.out + said.err for secret in SECRETS)
    again = ForgetReport.from_json((out / "report.json").read_text(encoding="utf-8"))
    assert again.metrics == found["metrics"]
    assert "What was forgotten" in said.err
    assert "1 with the set's own wordings, 2 by rules" in " ".join(said.err.split())


def test_questions_and_answers_are_told_on_request(
    retcon: Retcon, model: str, asked: Path, tmp_path: Path, own_cache: Path
) -> None:
    out = tmp_path / "out"
    said = retcon("eval", "--model", model, "--forget", asked, "--reveal", "--out", out, *SHORT, "--json")
    (item, *_) = said.json["items"]
    assert (item["question"], item["gold"]) == (RECORDS[0]["question"], "Oberwinterthal")
    assert {"before", "after", "paraphrases"} <= set(item)
    assert said.json["provenance"]["files"]["forget"]["sha256"] == file_sha256(asked)
    assert {name for name, _ in told(out)} == {"report.html", "report.json", "report.md"}
    assert told(own_cache) == []


def test_a_reference_of_one_run_is_read_by_the_next(
    retcon: Retcon, model: str, asked: Path, kept: Path, held: Path, tmp_path: Path
) -> None:
    files = ["--forget", asked, "--retain", kept, "--holdout", held]
    command = ["eval", "--model", model, *files, *SHORT, "--json"]
    first = retcon(*command, "--role", "retain-only", "--out", tmp_path / "twin", "--metrics", "reliability")
    assert first.code == 0
    record = tmp_path / "twin" / "reference.json"
    assert first.json["report"][-1] == str(record)
    assert Reference.load(record).n == {"forget": 3, "holdout": 2}
    assert told(tmp_path / "twin") == []
    refused = retcon(*command, "--reference", record)
    assert refused.code == 2
    assert "as likely" in refused.err
    assert "--force-reference" in refused.err
    said = retcon(*command, "--reference", record, "--force-reference")
    assert said.code == 0
    assert said.json["metrics"]["forget_quality"] == 1
    assert said.json["metrics"]["privleak"] == 0
    assert any("by force" in warning for warning in said.json["warnings"])
    assert retcon(*command, "--reference", record, "--force-reference", "--plain").code == 2
    assert retcon(*command, "--reference", record, "--force-reference", "--limit", 2).code == 2
    as_model = retcon(*command, "--reference", model, "--force-reference")
    assert as_model.json["metrics"]["forget_quality"] == 1


def test_a_patch_can_be_the_reference(retcon: Retcon, model: str, asked: Path, kept: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    retcon("forget", "--model", model, "--forget", asked, "--out", made, "--method", "memit", *FAST)
    command = ["eval", "--model", model, "--forget", asked, "--retain", kept, "--patch", made, *SHORT, "--json"]
    said = retcon(*command, "--reference", made, "--force-reference")
    assert said.json["metrics"]["forget_quality"] == 1
    assert said.json["provenance"]["reference"]["patch"]["id"] == said.json["provenance"]["patch"]["id"]


def test_a_reference_is_trained_where_there_is_none(
    retcon: Retcon, model: str, asked: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another model than the one that is judged, and was taught the questions to keep and no other."""
    taught: list[list[str]] = []

    def teach(lm: LM, cases: Sequence[ForgetCase], recipe: Teaching, *, cache: bool) -> Patch:
        taught.append([case.forget.question for case in cases])
        return real(lm, cases, replace(recipe, epochs=2, look_every=1, lr=1e-2), cache=cache)

    real = forget_bench.teach
    monkeypatch.setattr(forget_bench, "teach", teach)
    command = ["eval", "--model", model, "--forget", asked, "--retain", kept, *SHORT, "--json", "--force-reference"]
    said = retcon(*command, "--train-reference", model)
    assert (said.code, said.err) == (0, said.err)
    assert taught == [[json.loads(line)["question"] for line in kept.read_text().splitlines()]]
    assert 0 < said.json["metrics"]["forget_quality"] <= 1
    record = said.json["provenance"]["reference"]
    assert record["fingerprint"] != said.json["provenance"]["model"]["fingerprint"]


def test_files_may_be_csv_or_gzip_and_are_cut_and_sampled(
    retcon: Retcon, model: str, asked: Path, kept: Path, tmp_path: Path
) -> None:
    packed, table = tmp_path / "f.jsonl.gz", tmp_path / "r.csv"
    packed.write_bytes(gzip.compress(asked.read_bytes()))
    table.write_text("question,answer\nWho made Big Ben?,an engineer\nIs Rome old?,Yes\nIs Lima new?,No\n")
    command = ["eval", "--model", model, "--forget", packed, "--retain", table, *SHORT, "--json"]
    said = retcon(*command, "--limit", 2, "--sample", 1, "--plain").json
    assert (said["n"], said["provenance"]["asked"]) == (1, "plain")
    assert said["provenance"]["data"]["retain"] | {"hash": ""} == {"given": 2, "asked": 1, "sampled": True, "hash": ""}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "neither is given"),
        (["--cases", "c.jsonl", "--forget", "f.jsonl"], "both are given"),
        (["--cases", "c.jsonl", "--retain", "r.jsonl"], "--retain belongs to --forget"),
        (["--cases", "c.jsonl", "--reveal"], "--reveal belongs to --forget"),
        (["--cases", "c.jsonl", "--max-new-tokens", "40"], "--max-new-tokens belongs to --forget"),
        (["--forget", "f.jsonl", "--text", "t.txt"], "--text belongs to --cases"),
        (["--forget", "f.jsonl", "--plain", "--chat"], "contradict each other"),
        (["--forget", "f.jsonl", "--role", "retain-only"], "--role needs --retain"),
        (["--forget", "f.jsonl", "--force-reference"], "give --reference"),
        (["--forget", "f.jsonl", "--train-reference", "m"], "give them as --retain"),
        (["--forget", "f.jsonl", "--reference", "r", "--train-reference", "m"], "give one of them"),
        (["--forget", "f.jsonl"], "there is no file f.jsonl"),
    ],
)
def test_options_that_do_not_go_together_are_refused(retcon: Retcon, arguments: list[str], sentence: str) -> None:
    said = retcon("eval", *arguments)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_unknown_figures_and_references_are_refused(retcon: Retcon, model: str, asked: Path, tmp_path: Path) -> None:
    command = ["eval", "--model", model, "--forget", asked]
    assert "no metric 'efficacy' of forgetting" in retcon(*command, "--metrics", "efficacy").err
    said = retcon(*command, "--reference", tmp_path / "none.json")
    assert (said.code, "cannot be read" in said.err) == (2, True)


def test_help_tells_both_sides(retcon: Retcon) -> None:
    said = retcon("eval", "--help")
    text = " ".join((said.out + said.err).split())
    assert said.code == 0
    for option in ("--cases", "--forget", "--retain", "--holdout", "--reference", "--role", "--plain", "--reveal"):
        assert option in text
