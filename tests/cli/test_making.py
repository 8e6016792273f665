"""What commands that make patches share: the steps of a fold, and what names a run."""

from pathlib import Path

import pytest

from retcon.cli import making
from retcon.lm import LM
from retcon.methods import MEMIT
from retcon.requests import Edit
from retcon.sets import load_edits


def test_the_run_is_named_by_all_that_decides_it(model: str, edits: Path) -> None:
    lm, facts = LM.load(model), load_edits(edits).items
    config = MEMIT.Config()
    keys = {
        making.run_key(lm, "memit", config, facts),
        making.run_key(lm, "rome", config, facts),
        making.run_key(lm, "memit", MEMIT.Config(steps=3), facts),
        making.run_key(lm, "memit", config, facts[:2]),
        making.run_key(lm, "memit", config, facts, chunk=2),
    }
    assert len(keys) == 5


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
    assert list(making._steps(edits, size)) == steps
