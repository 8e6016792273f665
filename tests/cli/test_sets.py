"""`retcon sets`: the list, one set, and one set as JSONL."""

import json
from pathlib import Path

from tests.cli.conftest import FAST, Retcon

from retcon.requests import load_cases, load_edits
from retcon.sets import SETS
from retcon.storage import file_sha256


def test_the_sets_are_listed_with_kind_and_licence(retcon: Retcon) -> None:
    found = retcon("sets", "--json").json["sets"]
    assert [entry["name"] for entry in found] == list(SETS)
    assert all(entry["licence"] and entry["citation"] and entry["kind"] for entry in found)
    said = retcon("sets")
    assert said.code == 0
    assert "builtin" in said.out


def test_show_prints_examples_of_the_builtin_set(retcon: Retcon) -> None:
    said = retcon("sets", "show", "builtin", "--limit", "2")
    assert said.out.count("neighbour:") >= 2
    assert "Apache-2.0" in said.out
    found = retcon("sets", "show", "builtin", "--limit", "2", "--json").json
    assert len(found["examples"]) == 2
    assert found["provenance"]["n"] == 2


def test_show_tells_of_a_set_that_is_not_here(retcon: Retcon, tmp_path: Path) -> None:
    said = retcon("sets", "show", "lume")
    assert said.code == 0
    assert "No examples: lume forget is not on this machine" in said.out
    assert retcon("sets", "show", "lume", "--root", tmp_path).code == 2


def test_show_reads_a_file_of_ones_own(retcon: Retcon, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "Who wrote it?", "answer": "Jo Doe", "group": "g"}) + "\n")
    assert "answer: Jo Doe" in retcon("sets", "show", path).out
    assert retcon("sets", "show", "nothing").err.startswith("error: there is no file or set nothing")


def test_export_writes_what_edit_and_eval_read(retcon: Retcon, tmp_path: Path) -> None:
    out = tmp_path / "b.jsonl"
    found = retcon("sets", "export", "builtin", "--out", out, "--limit", "4", "--json").json
    assert (found["n"], found["sha256"]) == (4, file_sha256(out))
    assert len(load_cases(out).items) == len(load_edits(out).items) == 4
    again = retcon("sets", "export", "builtin", "--out", out)
    assert (again.code, "add --force" in again.err) == (2, True)
    assert retcon("sets", "export", "builtin", "--out", out, "--limit", "5", "--force").code == 0
    assert len(load_cases(out).items) == 5


def test_edit_and_eval_take_the_name_of_a_set(retcon: Retcon, model: str, tmp_path: Path) -> None:
    out = tmp_path / "patch"
    made = retcon("edit", "--model", model, "--edits", "builtin", "--limit", "2", "--out", out, *FAST, "--json")
    assert (made.code, made.json["n"]) == (0, 2)
    asked = ["--cases", "builtin", "--limit", "2", "--metrics", "efficacy"]
    assert retcon("eval", "--model", model, "--patch", out, *asked, "--json").code == 0
