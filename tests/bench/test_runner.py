"""The bench: rows, cases, failures that stop nothing, stops that lose little, and no trace in the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.conftest import FAST, METRICS, Make

from retcon import bench as benches
from retcon.bench import records
from retcon.bench.rows import Rows
from retcon.errors import RetconError, RetconWarning
from retcon.evaluate import evaluate, provenance
from retcon.lm import LM
from retcon.methods import MEMIT, ROME
from retcon.patch import Patch
from retcon.report.bench import pictures
from retcon.report.rows import boards
from retcon.sets import cases as load_cases
from retcon.testing.snapshot import changed, snapshot


def test_a_row_has_the_figures_of_the_final_model_and_all_that_it_takes_to_make_it_again(
    bench: Make, lm: LM, facts: Path, tmp_path: Path
) -> None:
    before = snapshot(lm.model, lm.tokenizer)
    (row,) = bench(cache=False).run()
    assert not changed(before, snapshot(lm.model, lm.tokenizer))
    out = tmp_path / "out"
    assert [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()] == [row]
    (folder,) = (out / "patches").iterdir()
    patch = Patch.load(folder)
    report = evaluate(lm, load_cases(facts).items, patch=patch, metrics=METRICS)
    assert {name: row["metrics"][name] for name in METRICS} == report.metrics
    assert row["before"] == report.before
    assert row["intervals"] == {name: list(bounds) for name, bounds in report.intervals.items()}
    assert records.load(out / row["cases"]) == report.to_dict()["cases"]
    assert (row["n"], row["judged"], row["targets_cached"]) == (4, 4, 0)
    assert (row["patch"]["id"], row["patch"]["folds"]) == (patch.id, True)
    assert row["seconds"]["edit"] >= row["seconds"]["targets"] > 0
    spent = row["seconds"]["targets"] + row["seconds"]["solve"]
    assert row["seconds_per_edit"] == pytest.approx(spent / 4, abs=2e-4)
    assert row["peak_memory_mb"] > 100
    told = row["provenance"]
    assert told["command"] == "retcon bench run.toml"
    assert told["model"]["fingerprint"] == lm.fingerprint()
    assert {"versions", "hardware", "seed", "date"} <= set(told)
    assert len(told["data"]["files"][0]["sha256"]) == len(told["data"]["cases_sha256"]) == 64
    assert row["config"]["layers"] == [1, 2]


def test_the_plan_says_what_is_left_and_what_its_time_is_taken_from(bench: Make, tmp_path: Path) -> None:
    both = {"methods": ["memit", "rome"], "set": {"memit": FAST, "rome": {"steps": 2, "statistics": "none"}}}
    first = bench(**both, cache=False).plan()
    assert [(item.done, item.source) for item in first.cells] == [(False, "a rough guess")] * 2
    assert first.left == first.seconds > 0
    assert not (tmp_path / "out").exists()
    bench(**both, cache=False, only=("memit",)).run()
    second = bench(**both).plan()
    assert [(item.done, item.source) for item in second.cells] == [(True, "measured"), (False, "a rough guess")]
    assert second.left == second.cells[1].seconds < second.seconds
    more = bench(edits=[2, 4]).plan()
    assert [item.source for item in more.cells] == ["this folder", "measured"]
    elsewhere = bench(tmp_path / "other").plan()
    assert [(item.done, item.source) for item in elsewhere.cells] == [(False, "earlier runs")]


def test_what_is_there_is_taken_and_whatever_decides_a_row_makes_another(
    bench: Make, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = bench().run()
    calls: list[str] = []
    real = MEMIT.edit

    def edit(self: MEMIT, *arguments: Any, **options: Any) -> Patch:
        calls.append("edit")
        return real(self, *arguments, **options)

    monkeypatch.setattr(MEMIT, "edit", edit)
    assert bench().run() == [row]
    assert calls == []
    (fewer,) = bench(metrics=["efficacy"]).run()
    assert calls == []  # judged anew; the patch is the same
    assert set(fewer["metrics"]) == {"efficacy"}
    keys = {row["key"], fewer["key"]}
    for change in ({"edits": [3]}, {"seeds": [1]}, {"sample": 2}, {"set": {"memit": FAST | {"ridge": 0.2}}}):
        keys |= {item.key for item in bench(**change).plan().cells}
    assert len(keys) == 6


def test_the_key_knows_the_data_by_its_content(bench: Make, facts: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    copy = tmp_path / "one" / facts.name
    copy.write_bytes(facts.read_bytes())
    (there,) = bench().plan().cells
    (same,) = bench(datasets=[str(copy)]).plan().cells
    assert same.key == there.key
    copy.write_text(copy.read_text("utf-8").replace("blue", "grey"), encoding="utf-8")
    (other,) = bench(datasets=[str(copy)]).plan().cells
    assert other.key != there.key


def test_a_cell_that_fails_says_why_the_rest_are_finished_and_it_is_tried_again(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"methods": ["rome", "memit"], "set": {"memit": FAST, "rome": {"steps": 2, "statistics": "none"}}}
    with monkeypatch.context() as broken:
        broken.setattr(ROME, "edit", lambda *_, **__: 1 / 0)
        broken.setattr(MEMIT, "unsupported", lambda *_: "it is too small", raising=False)
        with pytest.warns(RetconWarning, match="rome, facts.jsonl, N=4, .* failed"):
            failed, na = bench(**both).run()
    assert failed["failed"] == "ZeroDivisionError: division by zero"
    assert "metrics" not in failed
    assert na["na"] == "n/a: memit: it is too small"
    (rome, _) = bench(**both).run()
    assert rome["metrics"]["efficacy"] is not None
    assert [item.done for item in bench(**both).plan().cells] == [True, True]


def test_a_fold_is_judged_at_its_end_and_after_each_chunk_and_goes_on_after_a_stop(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = bench(tmp_path / "whole", mode="sequential", chunk=2, cache=False).run()
    matrix = whole["retention"]["scores"]
    assert [len(row) for row in matrix] == [1, 2]
    assert whole["retention"]["final"] == pytest.approx(whole["metrics"]["efficacy"])
    assert whole["mode"] == "sequential"
    assert whole["seconds"]["retention"] > 0
    real, calls = MEMIT.edit, []

    def edit(self: MEMIT, lm: LM, edits: Any, **options: Any) -> Patch:
        calls.append(len(edits))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, lm, edits, **options)

    monkeypatch.setattr(MEMIT, "edit", edit)
    with pytest.raises(KeyboardInterrupt):
        bench(mode="sequential", chunk=2, cache=False).run()
    (again,) = bench(mode="sequential", chunk=2, cache=False).run()
    assert calls == [2, 2, 2]
    assert again["patch"]["id"] == whole["patch"]["id"]
    assert again["retention"] == whole["retention"]
    assert again["metrics"] == whole["metrics"]


def test_a_row_whose_cases_are_gone_is_judged_again(bench: Make, tmp_path: Path) -> None:
    (row,) = bench().run()
    (tmp_path / "out" / row["cases"]).unlink()
    assert [item.done for item in bench().plan().cells] == [False]
    (again,) = bench().run()
    assert (tmp_path / "out" / again["cases"]).is_file()
    assert again["metrics"] == row["metrics"]


def test_targets_from_the_cache_leave_a_method_without_a_time_of_its_own(bench: Make, tmp_path: Path) -> None:
    bench(tmp_path / "one").run()
    (row,) = bench(tmp_path / "two").run()
    assert (row["targets_cached"], row["seconds_per_edit"]) == (4, None)


def test_a_folder_of_another_kind_of_bench_is_refused(bench: Make, tmp_path: Path) -> None:
    Rows(tmp_path / "out", setting="s").put("a", {"row": "memit, idk100"})
    with pytest.raises(RetconError, match="out holds rows of another kind of bench; name another --out"):
        bench().plan()


def test_a_set_or_a_text_that_is_missing_is_told_before_anything_runs(bench: Make, tmp_path: Path) -> None:
    with pytest.raises(RetconError, match="there is no file"):
        bench(datasets=[str(tmp_path / "none.jsonl")]).run()
    with pytest.raises(RetconError, match="cannot be read as UTF-8 text"):
        bench(text=str(tmp_path / "none.txt")).run()
    assert not (tmp_path / "out").exists()


def test_one_call_runs_it_from_python(asked: dict[str, Any], lm: LM, tmp_path: Path) -> None:
    (row,) = benches.run(asked | {"metrics": ["efficacy"]}, tmp_path / "out", load=lambda _: lm)
    assert row["provenance"]["command"] == "retcon.bench.run"
    assert [item["row"] for item in benches.rows_of(tmp_path / "out")] == [row["row"]]


def test_a_fold_with_the_usual_figures_has_its_retention_drawn(bench: Make) -> None:
    (row,) = bench(mode="sequential", chunk=2, metrics=None).run()
    told = row["retention"]
    assert [len(step) for step in told["efficacy_gen"]["scores"]] == [1, 2]
    assert told["final"] == pytest.approx(row["metrics"]["efficacy"])
    assert told["efficacy_gen"]["final"] == pytest.approx(row["metrics"]["efficacy_gen"])
    (board,) = boards([row])
    caption, _ = pictures(board)["retention"]
    assert caption == "Retention: efficacy_gen over all edits so far"


def test_rows_of_other_code_are_taken_and_told_of(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench().run()
    assert {row["provenance"]["code"] for row in rows} == {provenance.code()}
    assert not any("other code" in note for note in bench().plan().notes)
    monkeypatch.setattr(provenance, "code", lambda: "other")
    plan = bench().plan()
    assert all(item.done for item in plan.cells)
    assert f"{len(rows)} of {len(rows)} rows were measured by other code of this version" in plan.notes[-1]


def test_a_fold_that_an_older_version_began_lacks_its_first_free_running_scores(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = MEMIT.edit, []

    def edit(self: MEMIT, lm: LM, edits: Any, **options: Any) -> Patch:
        calls.append(len(edits))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, lm, edits, **options)

    monkeypatch.setattr(MEMIT, "edit", edit)
    with pytest.raises(KeyboardInterrupt):
        bench(mode="sequential", chunk=2).run()
    (part,) = (tmp_path / "out" / "patches").glob(".*.partial-*/patch")
    older = Patch.load(part)
    info = {name: value for name, value in older.info.items() if name != "retention_gen"}
    replace(older, info=info).save(part)
    (row,) = bench(mode="sequential", chunk=2).run()
    assert row["retention"]["efficacy_gen"]["scores"][0] == [None]
    assert row["retention"]["efficacy_gen"]["final"] is not None
    (board,) = boards([row])
    assert pictures(board)["retention"][0] == "Retention: efficacy over all edits so far"
