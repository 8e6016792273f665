"""`retcon forget-bench`: the plan first, rows as JSON and as a table, and what is refused before anything runs."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import Retcon

from retcon.methods import MEMIT

TEACH = ["--teach", "lr=1e-2", "rank=16", "alpha=32", "epochs=60", "look_every=10", "goal=0.3"]
SMALL = ["--forget-groups", 1, "--retain-groups", 1, "--holdout", 1, "--attributes", 1]
FAST = ["--set", "steps=8", "clamp=4", "templates=1", "layers=1,2", "statistics=none", "memit.ridge=0.1"]


@pytest.fixture(autouse=True)
def _judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the evaluation of forgetting."""

    def evaluate(lm: Any, forget: Any, retain: Any, **options: Any) -> Any:
        figures = {"reliability": float(options["patch"] is not None), "leakage": float(options["twin"] is None)}
        return SimpleNamespace(to_dict=lambda: {"metrics": figures, "before": {}})

    forgetting = import_module("retcon.evaluate.forgetting")
    monkeypatch.setattr(forgetting, "evaluate_forgetting", evaluate)
    monkeypatch.setattr(forgetting, "reference_record", lambda *_, **__: "the twin")


def test_a_bench_shows_its_plan_and_writes_rows_that_the_next_run_takes(
    retcon: Retcon, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    command = ["forget-bench", "--model", model, "--out", out, "--json", *SMALL, *TEACH, *FAST]
    command += ["--methods", "memit", "npo", "--targets", "fixed"]
    planned = retcon(*command, "--plan")
    assert planned.code == 0
    rows = ["before", "retain-only twin", "memit, fixed, ridge=0.1", "npo"]
    assert planned.json == {"out": str(out), "rows": rows, "left": rows}
    assert not out.exists()
    said = retcon(*command)
    assert said.code == 0
    assert "1 questions to forget, 1 to keep, 1 left out (generated)" in said.err
    assert "Taught to the model and, without those to forget, to its twin: params lora" in said.err
    assert said.err.count("to do") == 4
    assert [row["row"] for row in said.json["rows"]] == rows
    assert said.json["failed"] == 0
    assert said.json["questions"] == {"forget": 1, "retain": 1, "holdout": 1}
    assert (out / "rows.md").read_text(encoding="utf-8").count("\n") == 6
    assert len((out / "corpus" / "forget.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    again = retcon(*command)
    assert again.json["rows"] == said.json["rows"]
    assert again.err.count("is there") == 4
    more = retcon(*command, "--plan", "--merge", 1, 2).json["left"]
    assert more == ["memit, fixed, 2 merged by concat, ridge=0.1", "npo, 2 merged"]
    other = retcon(*command, "--seed", 1)
    assert (other.code, "rows of another model, corpus" in other.err) == (2, True)


def test_a_row_that_fails_ends_the_command_with_an_error_after_the_rest_are_finished(
    retcon: Retcon, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MEMIT, "edit", lambda *_, **__: 1 / 0)
    command = ["forget-bench", "--model", model, "--out", tmp_path / "out", "--json", *SMALL, *TEACH]
    said = retcon(*command, "--methods", "memit", "ultraedit", "--targets", "fixed", "--set", "memit.statistics=none")
    assert said.code == 2
    assert said.json["failed"] == 1
    assert ["failed" in row for row in said.json["rows"]] == [False, False, True, False]
    assert "error: 1 of 4 rows failed, and the same command tries them again; the first is memit, fixed" in said.err
    assert "ZeroDivisionError" in said.err


def test_what_a_model_knows_needs_no_teaching(retcon: Retcon, model: str, tmp_path: Path) -> None:
    asked = ["What is the tower made of?", "What is the sea made of?", "Where is the river?", "Who wrote it?"]
    records = [{"id": str(n), "question": text, "answer": "xyzzy"} for n, text in enumerate(asked)]
    for record in records[:3]:
        said = retcon("ask", "--model", model, "--chat", "--json", record["question"], "--tokens", 8)
        record["answer"] = said.json["answers"][0]["before"]
    file = tmp_path / "factual.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    command = ["forget-bench", "--model", model, "--out", tmp_path / "out", "--json", "--knowledge", "pretrained"]
    said = retcon(*command, "--corpus", file, "--methods", "memit", "--targets", "fixed", "--tokens", 12, *FAST)
    assert said.code == 0
    assert "questions right; 1 are dropped" in said.err
    assert [row["row"] for row in said.json["rows"]] == ["before", "memit, fixed, ridge=0.1"]
    assert said.json["rows"][0]["metrics"]["leakage"] == 1.0  # the judge saw no twin


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "mimit"], "there is no method 'mimit'"),
        (["--targets", "shrug"], "there is no family of targets 'shrug'"),
        (["--merge", "0"], "merged by so many, 1 for none"),
        (["--set", "rome.steps=3"], "'rome' is not among the methods (memit)"),
        (["--set", "depth=3"], "none of the methods has an option 'depth'"),
        (["--teach", "speed=3"], "there is no option 'speed'"),
        (["--knowledge", "pretrained"], "give --corpus FILE"),
        (["--corpus", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--forget-groups", "A", "B"], "give numbers of them"),
        (["--retain-corpus", "x.jsonl"], "the generated corpus needs no other file"),
        (["--plain", "--chat"], "contradict each other"),
        (["--attributes", "30"], "1 to 20 attributes, not 30"),
        (["foo", "--set", "foo.steps=1"], "no method 'foo'"),
        (["--tokens", "0"], "answers of 0 tokens say nothing"),
        (["--holdout", "-1"], "a holdout of -1 questions cannot be"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    retcon: Retcon, model: str, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    said = retcon("forget-bench", "--model", model, "--out", tmp_path / "out", "--methods", "memit", *arguments)
    assert said.code == 2
    assert sentence in said.err
    assert not (tmp_path / "out").exists()
