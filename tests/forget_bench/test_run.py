"""The bench: rows of every kind, failures that stop nothing, stops that lose nothing, and no trace in the model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.forget_bench.conftest import FAST, RECIPE, StandIn

from retcon.errors import RetconError, RetconWarning
from retcon.forget_bench import Bench, Cell, Split, cells
from retcon.forget_bench.run import BEFORE, TWIN
from retcon.lm import LM
from retcon.methods import MEMIT
from retcon.patch import Patch
from retcon.testing.snapshot import changed, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:the keys of the 2 questions")
WAYS = [
    *cells(["memit"], ["idk100"], [1, 2], ["mean_key"], shared=FAST),
    *cells(["grace"], ["idk100"], [1, 2], ["mean_key"], shared={"statistics": "none"}),
    *cells(["memit"], ["avoidant"], shared=FAST),
    *cells(["graddiff", "idk"], ["idk100"], shared={"lr": 3e-3, "eval_every": 1, "tolerance": 0.5, "epochs": 8}),
]


def spoilt(before: dict[str, Any], lm: LM) -> list[str]:
    """What has changed in a model, but for how often its weights were written: it is merged and unmerged."""
    return [name for name in changed(before, snapshot(lm.model, lm.tokenizer)) if not name.startswith("storage")]


def bench(lm: LM, corpus: Split, folder: Path, ways: list[Cell] = WAYS, **options: Any) -> Bench:
    given: dict[str, Any] = {"teaching": RECIPE, "judge": StandIn()} | options
    return Bench(lm, corpus, ways, folder, **given)


@pytest.fixture(name="done", scope="module")
def _done(lm: LM, corpus: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A whole bench, run once."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("RETCON_CACHE", str(folder / "cache"))
        before = snapshot(lm.model, lm.tokenizer)
        with pytest.warns(RetconWarning, match="memit, avoidant failed .*there is no target for"):
            rows = bench(lm, corpus, folder / "out").run()
        assert not spoilt(before, lm)
    return folder / "out", rows


Done = tuple[Path, list[dict[str, Any]]]


def test_there_is_a_row_for_each_way_and_for_the_models_as_they_are(done: Done) -> None:
    folder, rows = done
    assert [row["row"] for row in rows] == [BEFORE, TWIN, *(way.name for way in WAYS)]
    assert [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()] == rows
    lines = (folder / "rows.md").read_text("utf-8").splitlines()
    assert len(lines) == 2 + len(rows)


def test_the_model_knew_what_its_twin_never_did_and_each_method_makes_it_forget(done: Done) -> None:
    _, (before, twin, *rows) = done
    assert before["metrics"]["reliability"] < 0.6
    assert twin["metrics"]["reliability"] > 0.9
    assert twin["metrics"]["forget_quality"] is None
    for row in rows:
        if "na" not in row and "failed" not in row:
            assert row["metrics"]["reliability"] > before["metrics"]["reliability"] + 0.03, row["row"]
            assert row["metrics"]["forget_quality"] == pytest.approx(1 - twin["metrics"]["reliability"])


def test_a_row_tells_its_cost_its_patch_and_how_questions_became_edits(done: Done) -> None:
    folder, (_, _, plain, merged, grace, *_) = done
    assert {"plan", "edit", "judge", "targets", "solve"} <= set(plain["seconds"])
    kept = (folder / "patches" / "memit-idk100" / "targets.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["asked"] for line in kept] == ["idk100"] * 2
    assert "items" not in plain["forget"]
    assert "retain_prompts" not in plain["forget"]
    assert plain["seconds"]["edit"] >= plain["seconds"]["targets"]
    assert plain["peak_memory_mb"] > 0
    assert (plain["forget"]["edits"], merged["forget"]["merge"]["sizes"]) == (2, [2])
    assert (plain["patch"]["folds"], grace["patch"]["folds"]) == (True, False)
    training = done[1][-1]["training"]
    assert training["best"] > 0
    assert training["best"] in [reading["step"] for reading in training["readings"]]
    patch = Patch.load(folder / "patches" / "memit-idk100")
    assert patch.id == plain["patch"]["id"]
    assert patch.parent == Patch.load(folder / "taught").id
    assert json.loads((folder / "reports" / "memit-idk100.json").read_text("utf-8"))["metrics"] == plain["metrics"]


def test_what_cannot_be_and_what_fails_says_so_in_its_row(done: Done) -> None:
    _, rows = done
    found = {row["row"]: row for row in rows}
    assert found["grace, idk100, 2 merged by mean_key"]["na"].startswith("n/a: grace: ")
    assert "quote the corpus" in found["memit, avoidant"]["failed"]
    assert "metrics" not in found["memit, avoidant"]


def test_nothing_that_is_written_holds_a_question_or_an_answer(done: Done, corpus: Split) -> None:
    folder, _ = done
    secrets = [text for case in corpus.forget for text in (case.forget.question, case.forget.answer, *case.entities)]
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path


def test_a_stopped_bench_goes_on_and_edits_nothing_twice(
    lm: LM, corpus: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bool] = []

    class Stopping(StandIn):
        def report(self, lm: LM, split: Split, patch: Patch | None, **options: Any) -> dict[str, Any]:
            judged.append(patch is not None)
            if len(judged) == 3:
                raise KeyboardInterrupt
            return super().report(lm, split, patch, **options)

    ways = cells(["memit"], ["idk100"], shared=FAST)
    before = snapshot(lm.model, lm.tokenizer)
    one = bench(lm, corpus, tmp_path / "out", ways, judge=Stopping())
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert not spoilt(before, lm)
    again = bench(lm, corpus, tmp_path / "out", ways, judge=Stopping())
    assert again.left() == ["memit, idk100"]

    def refused(*_: object, **__: object) -> Patch:
        raise AssertionError("edited again")

    monkeypatch.setattr(MEMIT, "edit", refused)
    rows = again.run()
    assert judged == [False, False, True, True]
    assert [row["row"] for row in rows] == [BEFORE, TWIN, "memit, idk100"]
    assert "failed" not in rows[2]
    assert bench(lm, corpus, tmp_path / "out", ways, judge=Stopping()).run() == rows
    assert len(judged) == 4
    other = [dataclasses.replace(ways[0], shared={**FAST, "steps": 21})]
    assert bench(lm, corpus, tmp_path / "out", other).left() == ["memit, idk100"]


def test_the_rows_of_another_setting_are_left_alone(done: Done, lm: LM, corpus: Split) -> None:
    folder, _ = done
    for options in ({"teaching": dataclasses.replace(RECIPE, seed=1)}, {"teaching": None}):
        with pytest.raises(RetconError, match="rows of another model, corpus or way of teaching"):
            bench(lm, corpus, folder, **options).run()


def test_a_model_that_is_taught_nothing_has_no_twin(lm: LM, corpus: Split, tmp_path: Path) -> None:
    rows = bench(lm, corpus, tmp_path / "out", cells(["memit"], ["fixed"], shared=FAST), teaching=None).run()
    assert [row["row"] for row in rows] == [BEFORE, "memit, fixed"]
    assert [row["metrics"]["forget_quality"] for row in rows] == [None, None]
    assert Patch.load(tmp_path / "out" / "patches" / "memit-fixed").parent is None
    assert not (tmp_path / "out" / "taught").exists()
