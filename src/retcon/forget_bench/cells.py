"""The rows of a bench: which method forgets, by which targets, with questions merged or not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retcon import methods
from retcon.bench.cells import configured as of_method
from retcon.bench.cells import why_not as unsupported
from retcon.bench.words import slug
from retcon.errors import RetconError
from retcon.forget.merging import MODES, Mode, Way, why_not
from retcon.forget.plan import Recipe
from retcon.forget.targets import FAMILIES
from retcon.forget.usual import usual
from retcon.lm import LM
from retcon.report.rows import named

__all__ = ["METHODS", "TARGETS", "Cell", "Merge", "cells", "configured"]

METHODS = ("rome", "memit", "alphaedit", "ece", "eamet", "pmet", "ultraedit", "grace", "wise", "idk", "graddiff", "npo")
"""The methods of a bench where none are named: the editors, refusal fine-tuning and two gradient objectives."""
TARGETS = ("idk100", "self_improved")

Merge = int | Literal["all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to forget."""

    method: str
    target: str | None = "idk100"
    """The family of targets; None for an objective that learns none."""
    merge: Merge = 1
    """Questions that share one edit at most."""
    mode: Mode | None = None
    """How they are merged; None where they are not."""
    by: Way = "group"
    """Which questions go together, where any do."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, beside its defaults; the row's name tells them."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Options of all rows, which its name leaves out; those that the method has not are passed over."""

    @property
    def name(self) -> str:
        """What the row is called."""
        merged = [] if self.merge == 1 else [f"{self.merge} merged" + (f" by {self.mode}" if self.mode else "")]
        merged += [f"grouped by {self.by}"] if merged and self.by != "group" else []
        target = [self.target] if self.target else []
        return ", ".join([self.method, *target, *merged, *named(self.options)])

    @property
    def slug(self) -> str:
        """The name as a file may have it."""
        return slug(self.name)

    def recipe(self, seed: int) -> Recipe:
        """How questions become edits."""
        target = "fixed" if self.target is None else self.target  # an edit has one, though nothing is learned of it
        return Recipe(
            target=target, merge_queries=self.merge, merge_mode=self.mode or "concat", merge_by=self.by, seed=seed
        )

    def why_not(self, lm: LM, method: methods.Method) -> str | None:
        """Why it cannot be, "n/a: ..."; None where it can."""
        if getattr(method, "quotes", False):
            return f"n/a: {method.name}: its patches hold the questions word for word, and rows are made without"
        if self.merge != 1 and (reason := why_not(method, self.mode or "concat")) is not None:
            return reason
        return unsupported(lm, method)


def cells(
    names: Iterable[str] = METHODS,
    targets: Iterable[str] = TARGETS,
    merges: Iterable[Merge] = (1,),
    modes: Sequence[Mode] = ("concat",),
    by: Way = "group",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Every combination, in the order of the methods; an objective that learns no refusal has no row for each family.

    Args:
        names: ids of methods.
        targets: families of targets.
        merges: questions that share one edit, 1 for none.
        modes: how questions are merged.
        by: which questions are: a corpus without groups is merged by order, random or key.
        options: of a method, by its id.
        shared: of all methods that have them.

    Raises:
        RetconError: there is no such method, family, size or mode.
    """
    names, targets, merges = list(names), list(dict.fromkeys(targets)), list(dict.fromkeys(merges))
    _check(names, targets, merges, modes)
    found = []
    for name in dict.fromkeys(names):
        kind = methods.METHODS[name]
        objective, refuses = (bool(getattr(kind, flag, False)) for flag in ("unlearns", "learns_refusal"))
        mine: dict[str, Any] = {"options": dict((options or {}).get(name, {})), "shared": dict(shared or {})}
        for target in targets if refuses or not objective else [None]:
            for merge in merges:
                ways: Sequence[Mode | None] = [None] if merge == 1 or objective else modes
                found += [Cell(method=name, target=target, merge=merge, mode=mode, by=by, **mine) for mode in ways]
    return found


def configured(cell: Cell, seed: int, *, retain: int) -> methods.Method:
    """The cell's method, with what forgetting gives it; its seed is the bench's, unless the options name another.

    Args:
        cell: what is asked for.
        seed: of the bench.
        retain: how many questions there are to keep.

    Raises:
        RetconError: there is no such method or option.
    """
    given = {name: value for name, value in usual(cell.method, retain=retain).items() if name not in cell.shared}
    return of_method(cell.method, {**given, **cell.options}, seed, shared=cell.shared)


def _check(names: Sequence[str], targets: Sequence[str], merges: Sequence[Merge], modes: Sequence[Mode]) -> None:
    for what, given, known in (
        ("method", names, methods.METHODS),
        ("family of targets", targets, FAMILIES),
        ("way to merge", modes, MODES),
    ):
        if not given:
            raise RetconError(f"there is no {what}; name one of {', '.join(known)}")
        if unknown := [name for name in given if name not in known]:
            raise RetconError(f"there is no {what} {unknown[0]!r}; use one of {', '.join(known)}")
    if not merges or any(merge != "all" and merge < 1 for merge in merges):
        raise RetconError("questions are merged by so many, 1 for none, or all; give at least one such number")
