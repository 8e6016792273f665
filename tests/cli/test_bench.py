"""`retcon bench`: the plan, the rows, the table, the comparison, and what is refused."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Retcon

from retcon.methods import ROME
from retcon.requests import to_dict
from retcon.testing import tiny_edits

TOML = """
models = ["{model}"]
methods = ["memit", "rome"]
datasets = ["{facts}"]
edits = [3]
metrics = ["efficacy", "specificity"]

[set]
steps = 8
statistics = "none"
templates = 1

[set.memit]
layers = [1, 2]
ridge = 0.1
clamp = 4.0
"""


@pytest.fixture(name="config")
def _config(model: str, tmp_path: Path) -> Path:
    facts = tmp_path / "facts.jsonl"
    records = [
        to_dict(edit) | {"neighbours": [{"prompt": f"Town {n} is", "answer": "small"}]}
        for n, edit in enumerate(tiny_edits(3))
    ]
    facts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    path = tmp_path / "run.toml"
    path.write_text(TOML.format(model=model, facts=facts), encoding="utf-8")
    return path


def test_a_bench_shows_its_plan_runs_and_is_shown_and_compared(retcon: Retcon, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = retcon("bench", config, "--out", out, "--dry-run", "--json")
    assert planned.code == 0
    assert [cell["done"] for cell in planned.json["cells"]] == [False, False]
    assert {cell["estimate"] for cell in planned.json["cells"]} == {"a rough guess"}
    assert planned.json["left"] == 2
    assert "2 cells, 2 to do: about" in planned.err
    assert not out.exists()

    said = retcon("bench", config, "--out", out, "--no-cache", "--json")
    assert said.code == 0
    rows = said.json["rows"]
    assert [row["method"] for row in rows] == ["memit", "rome"]
    assert rows[0]["provenance"]["command"] == f"retcon bench {config} --out {out} --no-cache"
    assert retcon("bench", config, "--out", out, "--no-cache", "--json").json["rows"] == rows
    assert retcon("bench", config, "--out", out, "--dry-run", "--only", "rome", "--json").json["left"] == 0

    page = tmp_path / "docs" / "results.md"
    shown = retcon("bench", "show", out, "--markdown", page)
    assert shown.code == 0
    assert "neighbours kept" in shown.out
    assert "does best with" in shown.out
    assert f"retcon bench show {out} --markdown {page}" in page.read_text(encoding="utf-8")
    assert retcon("bench", "show", out, "--json").json["rows"] == rows

    same = retcon("bench", "compare", out, out, "--json")
    assert [pair["figures"]["efficacy"]["difference"] for pair in same.json["pairs"]] == [0, 0]
    two = retcon("bench", "compare", out, out, "--methods", "memit", "rome")
    assert two.code == 0
    assert "against" in two.out

    next((out / "cases").glob("*rome*")).unlink()
    part = retcon("bench", "compare", out, out)
    assert (part.code, "memit" in part.out) == (0, True)
    assert "not compared: rome" in part.err


def test_a_cell_that_fails_ends_the_command_with_an_error_after_the_rest_are_finished(
    retcon: Retcon, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ROME, "edit", lambda *_, **__: 1 / 0)
    said = retcon("bench", config, "--out", tmp_path / "out", "--json")
    assert said.code == 2
    assert said.json["failed"] == 1
    assert "metrics" in said.json["rows"][0]
    assert "error: 1 of 2 cells failed, and the same command tries them again; the first is rome" in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.toml", "--out", "o"], "there is no file none.toml; write one as in docs/bench.md"),
        (["builtin", "--out", "o", "--only", "memo"], "--only memo: no cell is of that"),
        (["show", "nowhere"], "nowhere holds no rows; give the --out"),
        (["compare", "nowhere", "nowhere"], "nowhere holds no rows"),
        (["compare", "a", "b", "--methods", "memit"], "--methods takes two methods"),
        (["builtin"], "--out"),
    ],
)
def test_what_is_wrong_is_one_sentence(retcon: Retcon, arguments: list[str], sentence: str) -> None:
    said = retcon("bench", *arguments)
    assert said.code == 2
    assert sentence in said.err
