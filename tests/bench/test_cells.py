"""The cells of a run, and some of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retcon.bench.cells import Cell, cells, configured, why_not
from retcon.bench.config import Config, load
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import METHODS


def run() -> Config:
    return load(
        {
            "models": ["a", "b"],
            "methods": ["memit", "rome"],
            "datasets": ["builtin", "zsre"],
            "edits": [100, 10],
            "seeds": [0, 1],
            "set": {"memit": {"layers": [1, 2]}},
        }
    )


def test_every_combination_is_a_cell_each_model_once_and_small_numbers_first() -> None:
    found = cells(run())
    assert len(found) == len({cell.name for cell in found}) == len({cell.slug for cell in found}) == 32
    assert [cell.model for cell in found] == ["a"] * 16 + ["b"] * 16
    assert [cell.edits for cell in found[:16]] == [10] * 8 + [100] * 8
    assert found[0].name == "memit, builtin, N=10, seed 0, a, layers=1,2"
    assert found[1].asked() == {
        "model": "a", "method": "rome", "options": {}, "dataset": "builtin", "edits": 10, "seed": 0, "mode": "batch",
        "chunk": None,
    }  # fmt: skip


def test_words_of_one_kind_are_alternatives_and_all_kinds_must_hold() -> None:
    found = cells(run(), ["a", "memit", "n=10", "seed=1"])
    assert [cell.dataset for cell in found] == ["builtin", "zsre"]
    assert {(cell.model, cell.method, cell.edits, cell.seed) for cell in found} == {("a", "memit", 10, 1)}
    assert len(cells(run(), ["memit", "rome"])) == 32
    with pytest.raises(RetconError, match=r"--only grace: no cell is of that; choose from memit, .* n=100, .* seed=1"):
        cells(run(), ["grace"])


def test_a_path_is_called_by_its_last_part_and_a_fold_by_its_chunks(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").touch()
    cell = Cell(model="org/name", method="memit", dataset=str(tmp_path / "facts.jsonl"), edits=20, chunk=5)
    assert cell.name == "memit, facts.jsonl, N=20, in chunks of 5, seed 0, org/name"
    assert cell.slug == "memit-facts.jsonl-N-20-in-chunks-of-5-seed-0-org-name"
    assert cell.asked()["mode"] == "sequential"
    assert len(replace(cell, options={"layers": tuple(range(99))}).slug) == 120


def test_a_method_takes_the_seed_and_shared_options_that_it_has() -> None:
    made = configured("memit", {"layers": (1,)}, 5, shared={"steps": 7, "rank": 3}).config
    assert (made.layers, made.steps, made.seed) == ((1,), 7, 5)
    assert configured("memit", {"seed": 2}, 5).config.seed == 2
    with pytest.raises(RetconError, match="memit has no option 'rank'"):
        configured("memit", {"rank": 3}, 0)


def test_a_method_that_cannot_edit_a_model_says_why(
    tiny_lm: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    memit = configured("memit", {}, 0)
    assert why_not(tiny_lm("llama"), memit) is None
    monkeypatch.setattr(METHODS["memit"], "unsupported", lambda *_: "it is too small", raising=False)
    assert why_not(tiny_lm("llama"), memit) == "n/a: memit: it is too small"
