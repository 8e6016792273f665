"""What methods with a memory share: how they behave, its place, its edits by name, going on, taking out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retcon.errors import PatchError, RetconError
from retcon.lm import LM
from retcon.patch import Entry, Patch
from retcon.patch.chain import chained, parts_of
from retcon.storage import digest

__all__ = ["MemoryMethod", "chosen_layer", "last_part", "name_of", "put_on", "without_edits"]


class MemoryMethod:
    """A method whose patches look at the prompt and are no change of a weight."""

    Config: Any
    order_matters: bool = True
    folds: bool = False
    """Facts go in one by one, but a batch is one step of the history."""
    routes: bool = True
    uses_retain: bool = True

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config


def chosen_layer(lm: LM, asked: int | None, usual: int) -> int:
    """The layer asked for, else the usual one.

    Raises:
        RetconError: it is not there.
    """
    n = lm.arch.n_layers
    if asked is not None and not 0 <= asked < n:
        raise RetconError(f"layer {asked} does not fit; name one of 0 to {n - 1}")
    return usual if asked is None else asked


def name_of(record: Mapping[str, Any]) -> str:
    """The id of an edit, from its record; made from its texts where it has none."""
    given = record.get("id")
    texts = [record.get(key) for key in ("prompt", "subject", "target_new")]
    return digest(texts)[:12] if given is None else str(given)


def last_part(state: Patch | None, path: str) -> Entry | None:
    """What acts last on a projection in the state; None where nothing does."""
    entry = None if state is None else state.entries.get(path)
    return None if entry is None else parts_of(entry)[-1]


def put_on(state: Patch | None, alone: Patch, path: str, entry: Entry, *, in_place: bool) -> Patch:
    """The patch of one call on top of the state.

    Args:
        state: the patch that was gone on from.
        alone: the call's own patch, of one step.
        path: the projection.
        entry: the memory after the call.
        in_place: whether it takes the place of the state's last part there, which it contains.
    """
    if state is None:
        return alone
    whole = state.then({}, alone.history[0], base=alone.base, info=alone.info)
    below = state.entries.get(path)
    parts = [] if below is None else list(parts_of(below))
    both = chained([*(parts[:-1] if in_place else parts), entry])
    return replace(whole, entries={**whole.entries, path: both})


def _names(part: Entry) -> Iterator[str]:
    """The edits that a memory holds."""
    for name in getattr(part, "names", ()):
        yield from (name,) if isinstance(name, str) else name


def without_edits(
    made: Patch, method: str, entries: Mapping[str, Entry], wanted: Sequence[str], found: set[str]
) -> Patch:
    """A patch whose memories have lost some edits, and whose history no longer has them either.

    What the history tells of edits that others took the place of goes too.

    Args:
        made: the patch.
        method: whose steps the edits stand in.
        entries: what is left.
        wanted: names of the edits that were to go.
        found: those that some memory had.

    Raises:
        PatchError: one of them was in no memory, and in no place of another edit.
    """
    told = {name_of(record) for step in made.history if step.method == method for record in step.edits}
    if missing := [name for name in wanted if name not in found | told]:
        raise PatchError(f"there is no edit {missing[0]!r} in patch {made.id}; `patch.edits` lists them")
    parts = (part for entry in entries.values() for part in parts_of(entry))
    left_over = {name for part in parts for name in _names(part)} - found
    steps = []
    for step in made.history:
        gone = [step.method == method and name_of(record) not in left_over for record in step.edits]
        left = tuple(record for record, out in zip(step.edits, gone, strict=True) if not out)
        if left or not any(gone):
            steps.append(replace(step, edits=left))
    if steps:
        steps[0] = replace(steps[0], parent=made.parent)
    return Patch(dict(entries), made.base, tuple(steps), made.state, made.info)
