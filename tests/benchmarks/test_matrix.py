"""The cells of the matrix: named, run by the bench, and their rows kept side by side."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, matrix
from retcon import bench
from retcon.bench.rows import read
from retcon.errors import RetconWarning
from retcon.methods import MEMIT, METHODS
from retcon.requests import to_dict
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

FAST = {"steps": 6, "clamp": 4.0, "templates": 1, "layers": [1, 2], "ridge": 0.1}
TABLE = matrix.Table("counterfact", 4, ("memit", "rome"))
CELL = "matrix/counterfact_4_memit"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")


@pytest.fixture(name="small")
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, a set of four facts in the place of CounterFact, and options that make an edit quick."""
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    records = [to_dict(edit) | {"paraphrases": [f"It is said: {edit.text}"]} for edit in tiny_edits(4)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (data / "counterfact_full.jsonl").write_text(lines, encoding="utf-8")
    (data / "ordinary.txt").write_text("The tower stands in the town by the sea. " * 40, encoding="utf-8")
    tiny_model("llama").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    asked = matrix.asked

    def smaller(table: matrix.Table) -> dict[str, Any]:
        keys = asked(table)
        keys["set"] |= {name: FAST for name in table.able if name == "memit"}
        return keys | {"models": [str(model)], "metrics": ["efficacy_gen", "efficacy", "log_perplexity"]}

    monkeypatch.setenv("RETCON_DATA", str(data))
    monkeypatch.setattr(common, "DATA", data)
    monkeypatch.setattr(common, "TEXT", data / "ordinary.txt")
    monkeypatch.setattr(matrix, "SHARED", {"statistics": data / "ordinary.txt"})
    monkeypatch.setattr(matrix, "TABLES", {TABLE.name: TABLE})
    monkeypatch.setattr(matrix, "asked", smaller)


def row(method: str, **more: Any) -> dict[str, Any]:
    asked = {"dataset": "counterfact", "edits": 4, "mode": "batch", "chunk": None, "seed": 0, "model": "tiny"}
    return {"key": method, "row": method, "method": method, "options": {}, **asked, **more}


def publish(table: matrix.Table, made: dict[str, Any]) -> None:
    publishing: Any = matrix._publish
    publishing(table, made)


def test_every_editor_has_a_cell_on_every_set_and_goes_on_to_a_thousand_facts_if_it_is_not_too_slow() -> None:
    names = list(matrix.cells())
    editors = [name for name, kind in METHODS.items() if not getattr(kind, "unlearns", False)]
    assert len(editors) > 15
    assert not {"npo", "ga"} & set(editors)
    hundreds = [f"matrix/{name}_100_{method}" for name in matrix.SETS for method in editors]
    some = ["matrix/counterfact_300_memit", "matrix/counterfact_300_wise"]
    thousand = [f"matrix/counterfact_1000_{method}" for method in editors if method not in ("rome", "wise")]
    assert names == hundreds + some + thousand


def test_a_method_that_takes_fact_by_fact_is_not_given_more_than_its_limit() -> None:
    assert matrix.Table("zsre", 301).able == tuple(name for name in matrix.EDITORS if name not in ("rome", "wise"))
    assert "wise" in matrix.Table("zsre", 300).able


@pytest.mark.parametrize("name", matrix.TABLES)
def test_what_is_asked_for_is_a_run_of_the_bench_with_free_running_figures(name: str) -> None:
    table = matrix.TABLES[name]
    config = bench.load(matrix.asked(table))
    assert len(bench.cells(config)) == len(table.able)
    assert {"efficacy_gen", "generalization_gen", "portability_gen", "specificity_gen"} <= set(config.metrics or ())
    assert config.sample == (200 if table.edits > 200 else None)
    assert config.options("memit") == {"statistics": str(common.STATISTICS)}


@pytest.mark.usefixtures("small")
def test_a_cell_leaves_its_row_and_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not matrix.kept(CELL)
    matrix.cells()[CELL]()
    assert matrix.kept(CELL)
    assert not matrix.kept("matrix/counterfact_4_rome")
    text = (TABLE.folder / "rows.jsonl").read_text(encoding="utf-8")
    (made,) = map(json.loads, text.splitlines())
    assert (made["method"], made["n"], made["judged"], made["targets_cached"]) == ("memit", 4, 4, 0)
    assert made["options"]["statistics"] == "ordinary.txt"
    assert made["seconds_per_edit"] > 0
    assert made["metrics"]["efficacy_gen"] is not None
    assert made["provenance"]["command"] == "RETCON_DATA=... python -m benchmarks 'matrix/counterfact_4_*'"
    assert made["provenance"]["text"]["source"] == "$RETCON_DATA/ordinary.txt"
    model = made["model"]  # the test's own; a published row names the default one
    for folder in (tmp_path / "data", tmp_path / "cache", tmp_path / "results"):
        assert str(folder) not in text
    assert sorted(path.name for path in TABLE.folder.iterdir()) == ["rows.jsonl", "rows.md"]
    assert f"N = 4, one batch, seed 0, {Path(model).name}" in (TABLE.folder / "rows.md").read_text(encoding="utf-8")
    monkeypatch.setattr(MEMIT, "edit", lambda *_, **__: 1 / 0)
    matrix.measure(TABLE.name, "memit")  # it is there, so nothing is measured
    assert list(read(TABLE.folder / "rows.jsonl").values()) == [made]
    matrix.anew(CELL)
    with (
        pytest.raises(SystemExit, match="memit, counterfact, N=4.* failed: ZeroDivisionError"),
        pytest.warns(RetconWarning),
    ):
        matrix.measure(TABLE.name, "memit")
    assert not matrix.kept(CELL)
    (made,) = read(TABLE.folder / "rows.jsonl").values()
    assert "failed" in made


def test_cells_that_end_at_one_moment_lose_no_row() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: publish(TABLE, row(name, failed="it did")), matrix.EDITORS))
    assert [made["method"] for made in matrix.held(TABLE)] == list(matrix.EDITORS)


def test_a_row_takes_the_place_of_its_methods_older_one() -> None:
    publish(TABLE, row("rome", key="old", failed="it did"))
    publish(TABLE, row("memit", failed="it did"))
    publish(TABLE, row("rome", key="new", failed="it did again"))
    assert [(made["method"], made["key"]) for made in matrix.held(TABLE)] == [("memit", "memit"), ("rome", "new")]
