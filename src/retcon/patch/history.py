"""How patches follow one another: a patch contains steps, and may stand on a parent that it does not contain."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from retcon.errors import PatchError
from retcon.storage import digest

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["ID_LENGTH", "Step", "check_new", "check_parent", "jsonable", "lineage"]

ID_LENGTH = 16
"""Hex digits of a patch's and of a step's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run of a method: what was asked, how, and on top of what.

    Whatever is given is turned into plain JSON values, so that a step read from a file equals the one written.
    """

    method: str
    """Name of the method, as in the table of methods."""
    config: dict[str, Any] = field(default_factory=dict)
    """The method's options."""
    edits: Sequence[dict[str, Any]] = ()
    """The edits in order, with the field names of the files (`target_new`, `target_true`)."""
    parent: str | None = None
    """Id of the patch that was in force while the method ran."""
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of retcon, torch and transformers."""
    chat: bool = False
    """Whether prompts were rendered through the chat template."""
    bos: bool | None = None
    """Whether prompts began with a BOS token."""
    scale: float = 1.0
    """What the result was multiplied by."""
    id: str = field(init=False)
    """Hash of all of the above."""

    def __post_init__(self) -> None:
        for name, value in self._content().items():
            object.__setattr__(self, name, tuple(value) if name == "edits" else value)
        object.__setattr__(self, "id", digest(self._content())[:ID_LENGTH])

    def _content(self) -> dict[str, Any]:
        return {f.name: jsonable(getattr(self, f.name)) for f in fields(self) if f.init}

    def to_dict(self) -> dict[str, Any]:
        """The step as a JSON object, its id first."""
        return {"id": self.id, **self._content()}


def jsonable(value: Any) -> Any:
    """`value` in plain JSON types: tuples as lists, numbers that are not finite as null, the rest as its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # numbers, arrays and tensors of torch and numpy
        return jsonable(value.tolist())
    return str(value)


def lineage(patches: Iterable["Patch"]) -> set[str]:
    """Ids of all patches that are in force when `patches` are."""
    return {name for patch in patches for name in (patch.id, *patch.contains)}


def _steps(patch: "Patch") -> set[str]:
    return {step.id for step in patch.history}


def check_new(below: "Patch", patch: "Patch", where: str) -> None:
    """Refuse a patch whose steps are, whole or in part, in force already.

    Args:
        below: a patch in force.
        patch: the one to come on top.
        where: ends the sentence "patch ... is already ...".

    Raises:
        PatchError: it does the same edits twice.
    """
    old, new = _steps(below), _steps(patch)
    if patch.id in lineage([below]) or (new and new <= old):
        raise PatchError(f"patch {patch.id} is already {where}; use it once")
    if below.id in patch.contains or (old and old <= new):
        raise PatchError(f"patch {patch.id} contains patch {below.id}, which is already {where}; use {patch.id} alone")
    if old & new:
        raise PatchError(
            f"patches {below.id} and {patch.id} both contain step {min(old & new)}, which would count twice; "
            "compute the later one on top of the other"
        )


def check_parent(known: set[str], patch: "Patch", deed: str) -> None:
    """Refuse a patch that was computed on top of one that is not in `known`.

    Args:
        known: ids of the patches in force.
        patch: the one to come on top.
        deed: what to do with the missing one, "apply" or "add".

    Raises:
        PatchError: naming the patch that must come first.
    """
    if patch.parent is not None and patch.parent not in known:
        raise PatchError(f"patch {patch.id} was computed on top of patch {patch.parent}; {deed} that one first")
