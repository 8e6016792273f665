"""Take single edits out of a patch again, where memories hold them; what was written into weights holds all as one."""

from collections.abc import Callable, Iterable, Mapping

from retcon.errors import PatchError
from retcon.methods import grace, ike, scr, wise
from retcon.methods.memories import name_of
from retcon.patch import Patch

__all__ = ["without"]

_OF: Mapping[str, Callable[[Patch, Iterable[str]], Patch]] = {
    "grace": grace.without, "wise": wise.without, "ike": ike.without, "scr": scr.without,
}  # fmt: skip
"""How each method with a memory takes out edits."""


def without(made: Patch, ids: Iterable[str]) -> Patch:
    """A patch without some of its edits; the others answer as before.

    Args:
        made: the patch; its edits may be of several methods.
        ids: of the edits, as `retcon patch show` lists them: the `id` of their record, or one made from their texts.

    Raises:
        PatchError: there is no such edit, a change of weights holds it together with others, or one of WISE shares its
            memory with edits that are to stay.
    """
    wanted = list(dict.fromkeys(ids))
    methods: dict[str, set[str]] = {}
    for step in made.history:
        for record in step.edits:
            methods.setdefault(name_of(record), set()).add(step.method)
    for name in wanted:
        if name not in methods:
            raise PatchError(f"there is no edit {name!r} in patch {made.id}; `retcon patch show` lists their ids")
        if weights := methods[name] - set(_OF):
            raise PatchError(
                f"{sorted(weights)[0]} wrote edit {name!r} into weights, together with others, from which it cannot be "
                "taken out alone; make the patch again without it"
            )
    for method, take_out in _OF.items():
        if mine := [name for name in wanted if method in methods[name]]:
            made = take_out(made, mine)
    return made
