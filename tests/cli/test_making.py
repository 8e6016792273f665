"""What commands that make patches share: the steps of a fold, and what names a run."""

from pathlib import Path

from retcon.cli import making
from retcon.lm import LM
from retcon.methods import MEMIT
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
