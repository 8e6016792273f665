"""Which patches are on a model now, by hooks or merged; the hooks themselves."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Int
from torch import Tensor, nn

from retcon.errors import PatchError
from retcon.patch.chain import parts_of
from retcon.patch.context import ROOT, Context
from retcon.patch.entries import Entry
from retcon.patch.forward_record import Recorder
from retcon.patch.history import check_new, check_parent, lineage
from retcon.patch.prefix import prefixer, standing

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = [
    "Applied",
    "Attached",
    "active",
    "applied",
    "attach",
    "carry",
    "check_order",
    "hooked",
    "original",
    "reads_texts",
    "suspended",
    "top",
]


class Removable(Protocol):
    """What stands on a model until it is removed."""

    def remove(self) -> None:
        """Take it off."""


@dataclass(eq=False, slots=True)
class Applied:
    """One patch on one model."""

    patch: "Patch"
    hooks: list[Removable] = field(default_factory=list)
    """Of a patch that is on."""
    merged: bool = False
    originals: dict[str, Tensor] = field(default_factory=dict)
    """Of a merged patch: the weights as they were before it, by module path."""
    recorder: Recorder | None = None
    """Of a patch with entries that look at the forward."""
    suspended: bool = False
    """Whether it is out of force for the moment."""


_applied: WeakKeyDictionary[nn.Module, list[Applied]] = WeakKeyDictionary()


def applied(model: nn.Module) -> list[Applied]:
    """What is on a model, in the order it came; the list is the register itself."""
    return _applied.setdefault(model, [])


def active(model: nn.Module) -> tuple["Patch", ...]:
    """The patches now in force on a model, on or merged, in the order they came."""
    return tuple(item.patch for item in _applied.get(model, ()) if not item.suspended)


@contextmanager
def suspended(model: nn.Module, patch: "Patch") -> Iterator[None]:
    """Run a model, inside the block, as if a patch were not on it.

    A merged patch stays in force, as does one that puts texts before prompts.
    """
    there = [item for item in applied(model) if item.patch.id == patch.id and ROOT not in patch.entries]
    mine = [item for item in there if not item.merged and not item.suspended]
    for item in mine:
        item.suspended = True
    try:
        yield
    finally:
        for item in mine:
            item.suspended = False


def top(model: nn.Module) -> str | None:
    """Id of all that is in force on a model, as one patch: the parent of what is computed now; None if bare."""
    patches = active(model)
    return _sum(patches).id if patches else None


def original(model: nn.Module, path: str) -> Tensor | None:
    """The weight of a module before any merge; None where nothing was merged into it."""
    return next((item.originals[path] for item in _applied.get(model, ()) if path in item.originals), None)


def check_order(model: nn.Module, patch: "Patch") -> None:
    """Refuse a patch that is in force already, or whose parent is not.

    Raises:
        PatchError: naming the patch to take off, or to apply first.
    """
    patches = active(model)
    for other in patches:
        check_new(other, patch, "on this model")
    if patch.parent is not None:
        known = lineage(patches)
        if patch.parent not in known and len(patches) > 1:
            known = lineage([_sum(patches)])  # the parent may be several of them together
        check_parent(known, patch, "apply")


def _sum(patches: Iterable["Patch"]) -> "Patch":
    """Patches as one; its id needs nothing of what they remember, which may not join."""
    return reduce(add, (replace(patch, state={}, info={}) for patch in patches))


class Attached:
    """A patch that is on a model until `detach()`; also a context manager."""

    def __init__(self, model: nn.Module, item: Applied) -> None:
        self._model = ref(model)
        self._item = item

    def detach(self) -> None:
        """Take the patch off; a second call does nothing.

        Raises:
            PatchError: a patch that was computed on top of this one is still in force.
        """
        model = self._model()
        if model is None or self._item not in applied(model):
            return
        mine = lineage([self._item.patch])
        rest = [item.patch for item in applied(model) if item is not self._item]
        for other in rest:
            if other.parent in mine and other.parent not in lineage(rest):
                raise PatchError(f"patch {other.id} stands on patch {self._item.patch.id}; take {other.id} off first")
        self.release()

    def release(self) -> None:
        """Take the patch off whatever stands on it."""
        for hook in self._item.hooks:
            hook.remove()
        model = self._model()
        if model is not None and self._item in applied(model):
            applied(model).remove(self._item)

    def __enter__(self) -> "Attached":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def attach(model: nn.Module, patch: "Patch", modules: Mapping[str, nn.Module]) -> Attached:
    """Hook a patch's entries to the modules; all of them, or none after an error."""
    item = Applied(patch)
    attached = Attached(model, item)
    try:
        if contexts := _contexts(patch):
            item.hooks.append(standing(model, contexts))
        if not all(entry.folds for path, entry in patch.entries.items() if path != ROOT):
            item.recorder = Recorder()
            item.hooks.extend(item.recorder.attached(model))
        for path, module in modules.items():
            entry = patch.entries[path]
            if path != ROOT:
                hook = _Hook(entry, item) if entry.folds else _Hook(entry, item, path)
                item.hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        applied(model).append(item)
    except BaseException:
        attached.release()
        raise
    return attached


def carry(model: nn.Module, before: object, after: object, rows: Int[Tensor, " m"]) -> None:
    """Let what memories on a model decided for rows of one cache hold for the rows of another that go on from them.

    Args:
        model: the model, or whatever `patch.on` was given.
        before: the cache that a prefill filled.
        after: the cache to go on from; continuations of several tokens may then run against it in one forward.
        rows: for each row of `after`, the row of `before`.
    """
    for item in applied(model):
        if item.recorder is not None:
            item.recorder.carry(before, after, rows)
    if (own := prefixer(model)) is not None:
        own.carry(before, after, rows)


def reads_texts(model: nn.Module) -> bool:
    """Whether a patch on a model puts texts before its prompts, so that its modules run more columns than are given."""
    return prefixer(model) is not None


def _contexts(patch: "Patch") -> list[Context]:
    """What a patch puts before prompts.

    Raises:
        PatchError: something else stands at the model's root.
    """
    parts = parts_of(patch.entries[ROOT]) if ROOT in patch.entries else ()
    if other := [part.kind for part in parts if not isinstance(part, Context)]:
        raise PatchError(f"the patch holds a {other[0]} for the model as a whole; only a context can stand there")
    return [part for part in parts if isinstance(part, Context)]


@contextmanager
def hooked(module: nn.Module, entry: Entry) -> Iterator[None]:
    """Run a module with one entry inside the block, before it has become part of a patch.

    The entry is a change of the weight; what looks at the prompt needs a patch, and so the model's root.
    """
    handle = module.register_forward_hook(_Hook(entry), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Hook:
    """Adds an entry to a projection's output; keeps the entry's copy on each device the module runs on."""

    def __init__(self, entry: Entry, item: Applied | None = None, name: str = "") -> None:
        self._entry, self._item, self._name = entry, item, name
        self._placed: dict[tuple[torch.device, torch.dtype], Entry] = {}

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Tensor) -> Tensor:
        if self._item is not None and self._item.suspended:
            return y
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        place = x.device, torch.promote_types(x.dtype, torch.float32)
        if place not in self._placed:
            with torch.inference_mode(False):  # tensors made inside it could not take part in a backward pass later
                self._placed[place] = self._entry.to(*place)
        recorder = None if self._item is None else self._item.recorder
        now = None if recorder is None else recorder.now
        return self._placed[place].apply(x, y, None if now is None else now.part(self._name))
