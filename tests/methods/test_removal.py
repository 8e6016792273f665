"""Taking single edits out of a patch, whichever memories hold them."""

from collections.abc import Callable

import pytest

from retcon.errors import PatchError
from retcon.lm import LM
from retcon.methods import method
from retcon.methods.removal import without
from retcon.testing import tiny_edits

Tiny = Callable[..., LM]
GRACE = {"radius": 1.0, "steps": 2, "statistics": "none"}


def test_edits_of_several_memories_go_at_once(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    first = method("grace", **GRACE).edit(lm, edits[:3])
    both = method("scr").edit(lm, edits[3:], state=first)
    left = without(both, ["tiny-4", "tiny-0", "tiny-4"])
    assert [[record["id"] for record in step.edits] for step in left.history] == [
        ["tiny-1", "tiny-2"],
        ["tiny-3", "tiny-5"],
    ]
    names = {name for entry in left.entries.values() for name in entry.names}  # type: ignore[attr-defined]
    assert names == {"tiny-1", "tiny-2", "tiny-3", "tiny-5"}
    assert without(both, []) is both


def test_what_weights_hold_stays_and_says_so(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    quick = {"steps": 2, "templates": 0, "layers": (1, 2), "statistics": "none", "rounds": 1}
    mixed = method("grace", **GRACE).edit(lm, edits[1:], state=method("memit", **quick).edit(lm, edits[:1]))
    assert [record["id"] for record in without(mixed, ["tiny-1"]).edits] == ["tiny-0", "tiny-2"]
    with pytest.raises(PatchError, match=r"memit wrote edit 'tiny-0' into weights.*make the patch again without it"):
        without(mixed, ["tiny-1", "tiny-0"])
    with pytest.raises(PatchError, match="there is no edit 'other'"):
        without(mixed, ["other"])
