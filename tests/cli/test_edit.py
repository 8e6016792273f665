"""`retcon edit`: a patch, the same patch, no other patch in its place; folds, stops and going on."""

from pathlib import Path

import pytest
from tests.cli.conftest import FAST, Retcon

from retcon.methods import MEMIT
from retcon.patch import Patch

KEYS = ["patch", "n", "method", "seconds", "seconds_per_edit", "targets_cached", "peak_memory_mb"]


def test_an_edit_writes_a_patch_and_one_json_object(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "patch"
    said = retcon("edit", "--model", model, "--edits", edits, "--out", out, "--limit", 3, "--json", *FAST)
    assert said.code == 0
    assert list(said.json)[: len(KEYS)] == KEYS
    assert (said.json["patch"], said.json["n"], said.json["method"]) == (str(out), 3, "memit")
    assert set(said.json["seconds"]) == {"statistics", "targets", "solve"}
    assert Patch.load(out).id == said.json["id"]
    assert len(Patch.load(out).edits) == 3
    assert "before" in said.err
    assert [path.name for path in out.parent.iterdir()] == ["patch"]


def test_the_patch_of_a_published_file_tells_whose_it_is(
    retcon: Retcon, model: str, published: Path, tmp_path: Path
) -> None:
    said = retcon("edit", "--model", model, "--edits", published, "--out", tmp_path / "p", "--json", *FAST)
    assert (said.code, said.json["n"]) == (0, 1)
    assert Patch.load(tmp_path / "p").info["data"]["licence"] == "MIT"


def test_settings_and_the_seed_reach_the_method(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    retcon("edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", "--seed", 7, *FAST)
    (step,) = Patch.load(tmp_path / "p").history
    assert (step.config["seed"], step.config["steps"], step.config["layers"]) == (7, 12, [1, 2])


def test_the_same_run_again_has_nothing_to_do(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    command = ["edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", "--json", *FAST]
    first, again = retcon(*command), retcon(*command)
    assert again.code == 0
    assert "nothing is left to do" in again.err
    assert again.json == first.json


def test_the_patch_of_another_run_is_kept_unless_forced(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path
) -> None:
    command = ["edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", *FAST]
    retcon(*command)
    kept = Patch.load(tmp_path / "p").id
    said = retcon(*command, "--limit", 1)
    assert (said.code, Patch.load(tmp_path / "p").id) == (2, kept)
    assert f"holds the patch of another run, {kept}" in said.err
    assert retcon(*command, "--limit", 1, "--force").code == 0
    assert len(Patch.load(tmp_path / "p").edits) == 1


def test_a_folder_with_something_else_is_never_replaced(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    command = ["edit", "--model", model, "--edits", edits, "--out", tmp_path / "mine", *FAST]
    for said in (retcon(*command), retcon(*command, "--force")):
        assert said.code == 2
        assert "name another --out" in said.err
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


def test_found_targets_are_used_again_and_give_the_same_patch(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path
) -> None:
    command = ["edit", "--model", model, "--edits", edits, "--json", *FAST]
    ids = [retcon(*command, "--out", tmp_path / name).json for name in ("a", "b")]
    assert [said["targets_cached"] for said in ids] == [0, 4]
    assert ids[0]["id"] == ids[1]["id"]
    assert retcon(*command, "--out", tmp_path / "c", "--no-cache").json["targets_cached"] == 0


def test_a_fold_adds_up_and_goes_on_where_it_was_stopped(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["edit", "--model", model, "--edits", edits, "--sequential", 2, "--no-cache", "--json", *FAST]
    whole = retcon(*command, "--out", tmp_path / "whole").json
    assert (whole["n"], len(whole["facts"])) == (4, 4)

    work, calls = MEMIT.edit, []

    def stopped(*arguments: object, **options: object) -> Patch:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MEMIT, "edit", stopped)
    said = retcon(*command, "--out", tmp_path / "stopped")
    assert (said.code, (tmp_path / "stopped").exists()) == (130, False)
    again = retcon(*command, "--out", tmp_path / "stopped").json
    assert len(calls) == 3
    assert (again["id"], again["n"], len(again["facts"])) == (whole["id"], 4, 4)
    assert not list(tmp_path.glob(".*partial*"))


def test_a_base_patch_is_contained_in_the_new_one(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("".join(edits.read_text().splitlines(keepends=True)[1:3]))
    command = ["edit", "--model", model, *FAST]
    retcon(*command, "--edits", edits, "--limit", 1, "--out", tmp_path / "a")
    said = retcon(*command, "--edits", more, "--base-patch", tmp_path / "a", "--out", tmp_path / "b", "--json")
    both = Patch.load(tmp_path / "b")
    assert said.json["n"] == 2
    assert (len(both.edits), len(both.history)) == (3, 2)
    assert both.history[1].parent == Patch.load(tmp_path / "a").id


def test_texts_to_keep_reach_a_method_that_uses_them(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("The teacher wrote a book\n\nMy favourite city\n")
    (tmp_path / "keep.jsonl").write_text('{"prompt": "The sea is"}\n')
    options = ["--method", "grace", "--set", "radius=1", "steps=2", "statistics=none"]
    command = ["edit", "--model", model, "--edits", edits, "--json", *options]
    runs = []
    for name in ("txt", "jsonl"):
        said = retcon(*command, "--retain", tmp_path / f"keep.{name}", "--out", tmp_path / name)
        assert (said.code, said.err.count("warning")) == (0, 0)
        assert "retain_hits" in Patch.load(tmp_path / name).info
        runs.append(Patch.load(tmp_path / name).info["run"])
    assert len(set(runs)) == 2, "the texts are part of what names the run"
    retcon(*command, "--out", tmp_path / "none")
    assert "retain_hits" not in Patch.load(tmp_path / "none").info


def test_a_method_that_makes_no_use_of_texts_to_keep_says_so_once(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path
) -> None:
    (tmp_path / "keep.txt").write_text("The teacher wrote a book\n")
    options = ["--method", "rome", "--set", "steps=2", "templates=1", "layers=1", "statistics=none"]
    command = ["edit", "--model", model, "--edits", edits, "--json", *options]
    said = retcon(*command, "--retain", tmp_path / "keep.txt", "--out", tmp_path / "a")
    assert said.code == 0
    assert said.err.count("warning: rome makes no use of texts to keep; keep.txt is left aside") == 1
    plain = retcon(*command, "--out", tmp_path / "b")
    assert plain.json["id"] == said.json["id"]
    assert "warning" not in plain.err
    assert "there is no file" in retcon(*command, "--retain", tmp_path / "none.txt", "--out", tmp_path / "c").err


def test_bad_lines_are_named_or_skipped(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    edits.write_text(edits.read_text() + "{oops\n")
    command = ["edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", *FAST]
    said = retcon(*command)
    assert (said.code, "edits.jsonl line 5: not JSON" in said.err) == (2, True)
    said = retcon(*command, "--skip-bad")
    assert (said.code, "warning: edits.jsonl line 5: not JSON" in said.err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "forget-me"], "there is no method 'forget-me'"),
        (["--set", "stepz=3"], "there is no option 'stepz'; did you mean steps?"),
        (["--sequential", "0"], "--sequential 0 is no number of edits"),
        (["--limit", "0"], "the limit is 0"),
        (["--base-patch", "nowhere"], "there is no patch folder nowhere"),
        (["--model", "nowhere/model.gguf"], "no such GGUF file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    retcon: Retcon, edits: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    said = retcon("edit", "--edits", edits, "--out", tmp_path / "p", *arguments)
    assert said.code == 2
    assert sentence in said.err
    assert not (tmp_path / "p").exists()
