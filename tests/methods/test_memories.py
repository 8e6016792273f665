"""What all memories do alike when they are gone on from, and when an edit is taken out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retcon.errors import PatchError
from retcon.lm import LM
from retcon.methods import IKE, SCR, grace, ike
from retcon.patch import Context, Patch
from retcon.testing import tiny_edits
from retcon.testing.contract import quick

TinyLM = Callable[..., LM]


def threshold(patch: Patch) -> float:
    """What a fact must exceed to stand before a prompt."""
    (entry,) = patch.entries.values()
    assert isinstance(entry, Context)
    return entry.threshold if entry.question is None else entry.question.threshold


@pytest.mark.parametrize("kind", [IKE, SCR])
def test_a_threshold_is_not_lowered_by_a_call_that_does_not_know_the_texts_to_keep(tiny_lm: TinyLM, kind: type) -> None:
    lm, (one, other) = tiny_lm("llama"), tiny_edits(2)
    method: Any = kind()
    first = method.edit(lm, [one], retain=["The city is large."])
    own = threshold(first)
    raised = replace(first, entries={path: lifted(entry) for path, entry in first.entries.items()})
    assert threshold(raised) > own
    assert threshold(method.edit(lm, [other], state=raised)) == threshold(raised)


def lifted(entry: Any) -> Any:
    """The memory with a threshold that nothing a tiny model says exceeds, as if texts to keep had asked for it."""
    if entry.question is None:
        return entry.gated(0.99)
    assert "floor" in entry.making
    return entry.confirmed_above(50.0).remade({**entry.making, "floor": 50.0})


@pytest.mark.parametrize(("name", "without"), [("ike", ike.without), ("grace", grace.without)])
def test_an_edit_that_another_took_the_place_of_leaves_with_it(
    tiny_lm: TinyLM, name: str, without: Callable[..., Patch]
) -> None:
    lm, (edit, other) = tiny_lm("llama"), tiny_edits(2)
    old, new = (replace(edit, target=target, id=target) for target in (edit.target, other.target))
    both = quick(name).edit(lm, [new, other], state=quick(name).edit(lm, [old]))
    assert [record["id"] for record in without(both, [new.target]).edits] == [other.id]
    assert [record["id"] for record in without(both, [old.target]).edits] == [new.id, other.id]
    with pytest.raises(PatchError, match="there is no edit 'nobody'"):
        without(both, ["nobody"])
