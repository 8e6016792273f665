"""Edits that contradict, repeat or doubt one another."""

from collections.abc import Sequence
from typing import Literal, get_args

from retcon.errors import RequestError
from retcon.requests.nouns import Edit

__all__ = ["Conflicts", "check_conflicts"]

Conflicts = Literal["error", "last"]
"""What to do with two edits that give one text different targets: refuse, or keep the last."""


def check_conflicts(
    edits: Sequence[Edit], conflicts: Conflicts = "error", *, names: Sequence[str] | None = None
) -> tuple[list[int], list[str]]:
    """Which edits to keep (positions, in order) and what to warn of.

    Two edits of one text (prompt with subject filled in) with different targets conflict. Only warned of: one subject
    and relation with different targets, an edit given twice, a target equal to the old one, a repeated id.

    Args:
        edits: in the order in which they were given.
        conflicts: "error" refuses a conflict, "last" keeps the last edit of each text.
        names: what to call each edit in a message, such as "line 12"; else "edit 1", "edit 2" and so on.

    Raises:
        RequestError: on a conflict, with both edits named.
    """
    if conflicts not in get_args(Conflicts):
        raise RequestError(f"conflicts is {conflicts!r}; it is one of " + ", ".join(map(repr, get_args(Conflicts))))
    names = names or [f"edit {n}" for n in range(1, len(edits) + 1)]
    alive: dict[str, list[int]] = {}  # text -> the edits of it, all with one target
    warnings = []
    for n, edit in enumerate(edits):
        same = alive.setdefault(edit.text, [])
        if same and edits[same[-1]].target == edit.target:
            warnings.append(f"{names[n]} repeats {names[same[-1]]}: {edit.text!r} -> {edit.target!r}")
        elif same and conflicts == "error":
            raise RequestError(
                f"{names[same[-1]]} and {names[n]} give {edit.text!r} different targets "
                f"({edits[same[-1]].target!r}, {edit.target!r}); remove one, or ask to keep the last"
            )
        elif same:
            overruled = " and ".join(names[m] for m in same)
            warnings.append(f"{names[n]} overrules {overruled}: {edit.text!r} -> {edit.target!r}")
            same.clear()
        same.append(n)
    kept = sorted(n for same in alive.values() for n in same)
    return kept, warnings + _doubts([edits[n] for n in kept], [names[n] for n in kept])


def _doubts(edits: Sequence[Edit], names: Sequence[str]) -> list[str]:
    warnings = []
    facts: dict[tuple[str, str], int] = {}
    ids: dict[str, int] = {}
    for n, edit in enumerate(edits):
        if edit.target == edit.old:
            warnings.append(f"{names[n]} changes nothing: the new and the old target are both {edit.target!r}")
        if edit.subject is not None and edit.relation is not None:
            first = facts.setdefault((edit.subject, edit.relation), n)
            if edits[first].target != edit.target:
                warnings.append(
                    f"{names[first]} and {names[n]} give {edit.subject!r} different targets for {edit.relation} "
                    f"({edits[first].target!r}, {edit.target!r})"
                )
        if edit.id is not None and (first := ids.setdefault(edit.id, n)) != n:
            warnings.append(f"{names[n]} has the id of {names[first]}, {edit.id!r}")
    return warnings
