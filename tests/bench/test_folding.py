"""A method over edits: in one call, as a fold, and after a stop."""

from pathlib import Path
from typing import Any

import pytest
from tests.bench.conftest import FAST

from retcon.bench.cells import configured
from retcon.bench.folding import folded, folds, held, resumable, steps_of
from retcon.lm import LM
from retcon.methods import MEMIT, Method
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits

EDITS = tiny_edits(4)


def memit() -> Method:
    return configured("memit", FAST | {"layers": (1, 2)}, 0)


def stopping(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """The method ends with Ctrl-C after that call; the number of edits of each call."""
    calls: list[int] = []
    real = MEMIT.edit

    def edit(self: MEMIT, lm: LM, edits: Any, **options: Any) -> Patch:
        made = real(self, lm, edits, **options)
        calls.append(len(edits))
        if len(calls) == call:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(MEMIT, "edit", edit)
    return calls


def test_a_batch_that_is_stopped_keeps_its_targets(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = folded(lm, memit(), EDITS, tmp_path / "whole", "k", cache=False)
    assert (whole.info["run"], whole.info["targets_cached"], len(whole.info["facts"])) == ("k", 0, 4)
    assert whole.info["wall_seconds"] > 0
    stopping(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        folded(lm, memit(), EDITS, tmp_path / "patch", "k", cache=False)
    assert not (tmp_path / "patch").exists()
    assert (resumable(tmp_path / "patch", "k") / "targets.sqlite").is_file()
    again = folded(lm, memit(), EDITS, tmp_path / "patch", "k", cache=False)
    assert again.id == whole.id
    assert again.info["targets_cached"] == 4
    assert not resumable(tmp_path / "patch", "k").exists()


def test_a_fold_that_is_stopped_goes_on_after_its_last_chunk(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after(made: Patch, before: Any) -> dict[str, Any]:
        spent = [*before.get("spent", []), made.info["seconds"]["targets"]]
        return {"seen": [*before.get("seen", []), len(made.edits)], "spent": spent}

    whole = folded(lm, memit(), EDITS, tmp_path / "whole", "k", chunk=1, cache=False, after=after)
    calls = stopping(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        folded(lm, memit(), EDITS, tmp_path / "patch", "k", chunk=1, cache=False, after=after)
    again = folded(lm, memit(), EDITS, tmp_path / "patch", "k", chunk=1, cache=False, after=after)
    assert calls == [1, 1, 1, 1, 1]  # the third was lost
    assert again.id == whole.id
    assert again.info["seen"] == whole.info["seen"] == [1, 2, 3, 4]
    assert (again.info["n"], len(again.info["facts"])) == (4, 4)
    assert whole.info["seconds"]["targets"] == pytest.approx(sum(whole.info["spent"]), abs=1e-2)
    assert again.history[-1].parent is not None


def test_a_patch_that_is_there_is_taken_only_for_its_own_run(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stopping(monkeypatch, 9)
    first = folded(lm, memit(), EDITS[:1], tmp_path / "patch", "k")
    assert folded(lm, memit(), EDITS[:1], tmp_path / "patch", "k").id == first.id
    assert calls == [1]
    assert folded(lm, memit(), EDITS[:1], tmp_path / "patch", "other").info["run"] == "other"
    assert calls == [1, 1]
    (tmp_path / "patch" / "manifest.json").write_text("{}", encoding="utf-8")
    assert held(tmp_path / "patch") is None
    assert held(tmp_path / "none") is None


def test_what_it_goes_on_from_is_part_of_the_patch_and_not_of_its_costs(lm: LM, tmp_path: Path) -> None:
    base = folded(lm, memit(), EDITS[:2], tmp_path / "base", "k")
    patch = folded(lm, memit(), EDITS[2:], tmp_path / "patch", "k", base=base, chunk=1)
    assert base.id in patch.contains
    assert [edit["id"] for edit in patch.edits] == ["tiny-0", "tiny-1", "tiny-2", "tiny-3"]
    assert (patch.info["n"], len(patch.info["facts"])) == (2, 2)


def test_a_memory_is_no_change_of_a_weight(lm: LM) -> None:
    grace = configured("grace", {"statistics": "none", "steps": 5, "radius": 1.0}, 0)
    assert not folds(grace.edit(lm, EDITS[:1]))
    assert folds(memit().edit(lm, EDITS[:1]))


@pytest.mark.parametrize(
    ("ties", "size", "steps"),
    [
        ("-----", 2, [(0, 2), (2, 4), (4, 5)]),
        ("-----", 9, [(0, 5)]),
        ("aabbc", 1, [(0, 2), (2, 4), (4, 5)]),
        ("aabb-", 3, [(0, 4), (4, 5)]),
        ("-aba-", 2, [(0, 4), (4, 5)]),
        ("", 2, []),
    ],
)
def test_a_fold_never_parts_edits_that_share_a_target(ties: str, size: int, steps: list[tuple[int, int]]) -> None:
    edits = [Edit(f"Q{n}", target="No.", tie=None if tie == "-" else tie) for n, tie in enumerate(ties)]
    assert list(steps_of(edits, size)) == steps
