"""The patch: what every method returns, and all that can be done with it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retcon import storage
from retcon.errors import PatchError
from retcon.patch import files, live, merge
from retcon.patch.base import Base, projection
from retcon.patch.chain import compress, parts_of
from retcon.patch.compose import joined_info, joined_state, together
from retcon.patch.entries import Entry, laid_out
from retcon.patch.explain import explained
from retcon.patch.history import ID_LENGTH, Step, check_new, check_parent, lineage
from retcon.patch.lora import LoraExport, export_lora

__all__ = ["Patch"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """A change of what a model knows, apart from the model.

    Its entries add to the outputs of some projections, `y + x Dᵀ`, or take their place for some prompts. It holds fp32
    on the CPU and is never changed itself: whatever alters it returns a new one.

    A patch contains the steps of its history. It may stand on a parent that it does not contain: then the parent must
    be in force before it is applied or added.
    """

    entries: Mapping[str, Entry]
    """What is added, by full module path."""
    base: Base
    """The model it was made for."""
    history: tuple[Step, ...] = ()
    """The runs of methods that are in it, in order."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What a sequential method must remember. In a sum, names that begin with `sum.` are added and those that begin
    with `cat.` are joined along the last dimension."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Timings and diagnostics, in JSON types."""
    contains: tuple[str, ...] = ()
    """Ids of the patches that went into it whole."""

    def __post_init__(self) -> None:
        entries = {path: entry.to("cpu", torch.float32) for path, entry in self.entries.items() if entry.rank > 0}
        for path, entry in entries.items():
            if not all(torch.isfinite(tensor).all() for tensor in entry.tensors().values()):
                raise PatchError(f"the change of {path} holds NaN or infinity; the computation of it went wrong")
            if path in self.base.weights and self.base.weights[path].shape != entry.shape:
                shape = self.base.weights[path].shape
                raise PatchError(f"the change of {path} has shape {entry.shape}, but the weight is {shape} (out, in)")
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "state", {name: laid_out(t.detach().cpu()) for name, t in self.state.items()})
        object.__setattr__(self, "info", dict(self.info))
        object.__setattr__(self, "history", tuple(self.history))
        object.__setattr__(self, "contains", tuple(dict.fromkeys(self.contains)))

    @cached_property
    def id(self) -> str:
        """16 hex digits: hash of the entries' bytes and of the history."""
        parts: list[Any] = [[step.id for step in self.history]]
        for path, entry in sorted(self.entries.items()):
            for name, tensor in sorted(entry.tensors().items()):
                parts += [path, entry.kind, name, list(tensor.shape)]
                parts.append(storage.digest(tensor.numpy().tobytes()))
            parts += [[path, settings]] if (settings := entry.settings()) else []
        return storage.digest(*parts)[:ID_LENGTH]

    @property
    def parent(self) -> str | None:
        """Id of the patch that it stands on and does not contain; None where it stands on the bare model."""
        first = self.history[0].parent if self.history else None
        return None if first in self.contains else first

    @property
    def edits(self) -> tuple[dict[str, Any], ...]:
        """All edits in order, with the field names of the files."""
        return tuple(edit for step in self.history for edit in step.edits)

    @property
    def method(self) -> str:
        """The methods that made it, in the order of their first use, joined by " + "."""
        return " + ".join(dict.fromkeys(step.method for step in self.history))

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors, those of the state included."""
        tensors = [tensor for entry in self.entries.values() for tensor in entry.tensors().values()]
        return sum(tensor.nbytes for tensor in (*tensors, *self.state.values()))

    @property
    def summary(self) -> str:
        """One line for people: edits, method, model, modules, rank, keys of memories."""
        n, modules = len(self.edits), len(self.entries)
        parts = [part for entry in self.entries.values() for part in parts_of(entry)]
        ranks, keys = sorted({part.rank for part in parts if part.folds}), [p.rank for p in parts if not p.folds]
        rank = f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
        rank += f", {sum(keys)} key{'' if sum(keys) == 1 else 's'}" if keys else ""
        return (
            f"{n} edit{'' if n == 1 else 's'} by {self.method or 'hand'} on {self.base.title}, "
            f"{modules} module{'' if modules == 1 else 's'}{rank}"
        )

    def __repr__(self) -> str:
        parent = f", on top of {self.parent}" if self.parent else ""
        return f"<Patch {self.id}: {self.summary}, {_readable(self.size_bytes)}{parent}>"

    def steps(self) -> list[dict[str, Any]]:
        """The history as JSON objects."""
        return [step.to_dict() for step in self.history]

    # On a model

    @contextmanager
    def on(self, model: M, *, check: bool = True) -> Iterator[M]:
        """Run the model with the patch inside the block; no weight is written, and the end leaves no trace.

        Args:
            model: the model it was made for, in any dtype, on any device, quantised or not.
            check: whether to compare the touched weights with those it was made for.

        Raises:
            PatchError: the model is another one, the patch is on it already, or its parent is not.
        """
        with self.attach(model, check=check):
            yield model

    def attach(self, model: nn.Module, *, check: bool = True) -> live.Attached:
        """Put the patch on the model until `detach()`; arguments and errors as in `on`."""
        live.check_order(model, self)
        if check:
            self.base.check(model, self.entries)
        return live.attach(model, self, {path: self._module(model, path) for path in self.entries})

    def detach(self, model: nn.Module) -> None:
        """Take the patch off the model.

        Raises:
            PatchError: it is not on, or another one stands on it.
        """
        for item in live.applied(model):
            if item.patch.id == self.id and not item.merged:
                return live.Attached(model, item).detach()
        raise PatchError(f"patch {self.id} is not on this model")

    def merge(self, model: nn.Module, *, check: bool = True) -> dict[str, float]:
        """Write the patch into the weights and keep the originals for `unmerge`.

        Returns:
            The share of each module's change that rounding loses, by module path; half precision also warns.

        Raises:
            PatchError: as in `on`; a patch is on the model by hooks; a weight is tied or quantised; an entry looks at
                the prompt and is no change of a weight.
        """
        if check:
            self.base.check(model, self.entries)
        for path in self.entries:
            self._module(model, path)
        return merge.merge(self, model)

    def unmerge(self, model: nn.Module) -> None:
        """Put back the weights that `merge` replaced, bit for bit; the last patch merged goes first.

        Raises:
            PatchError: the patch is not merged into this model, or another one came on top of it.
        """
        merge.unmerge(self, model)

    def explain(self, model: nn.Module, ids: Sequence[int]) -> list[dict[str, Any]]:
        """What each memory in the patch makes of a prompt: the score or distance of every part, and the decision.

        Args:
            model: as in `on`; the patch is not on it.
            ids: the prompt.

        Returns:
            One record for each entry or part of a chain, in JSON types: its `path` and `kind`, the `decision` in words,
            and of a memory what it holds under `memories`.

        Raises:
            PatchError: as in `on`.
        """
        return explained(self, model, ids)

    def _module(self, model: nn.Module, path: str) -> nn.Module:
        module, shape, _ = projection(model, path)
        if shape != self.entries[path].shape:
            raise PatchError(f"{path} is {shape} (out, in) in this model, the change {self.entries[path].shape}")
        return module

    # With other patches

    def then(
        self,
        entries: Mapping[str, Entry],
        step: Step,
        *,
        base: Base | None = None,
        state: Mapping[str, Tensor] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> "Patch":
        """The patch that contains this one and one step more, computed on top of it.

        Args:
            entries: what the step adds, by module path.
            step: the run; its parent becomes this patch (where this one is empty, this one's parent).
            base: of the modules that are new.
            state: what is remembered from now on, in place of this one's.
            info: of the new patch.
        """
        empty = not self.history and not self.entries
        return Patch(
            together(self.entries, entries),
            self.base.join(base) if base is not None else self.base,
            (*self.history, step if empty else replace(step, parent=self.id)),
            dict(self.state if state is None else state),
            dict(self.info if info is None else info),
            self.contains if empty else (*self.contains, self.id),
        )

    def __add__(self, other: "Patch") -> "Patch":
        """This patch, then `other`.

        Independent patches are joined, and so is one that stands on this one. Where `other` contains this patch, the
        sum is `other` itself.

        Raises:
            PatchError: the order is wrong, a step would count twice, or the bases differ.
        """
        if not isinstance(other, Patch):
            return NotImplemented
        mine = [step.id for step in self.history]
        theirs = [step.id for step in other.history]
        if self.id != other.id and (self.id in other.contains or (mine and theirs[: len(mine)] == mine != theirs)):
            return other
        if self.parent is not None and self.parent in lineage([other]):
            raise PatchError(
                f"patch {self.id} was computed on top of patch {self.parent}; the order is {other.id} + {self.id}"
            )
        check_new(self, other, f"part of patch {self.id}")
        known = lineage([self]) | ({self.parent} if self.parent else set())
        check_parent(known, other, "add")
        return Patch(
            together(self.entries, other.entries),
            self.base.join(other.base),
            (*self.history, *other.history),
            joined_state(self.state, other.state),
            joined_info(self.info, other.info),
            (*self.contains, self.id, *other.contains, other.id),
        )

    def scale(self, factor: float) -> "Patch":
        """The patch with `factor` times the effect; a new one, with which the old has no step in common.

        Raises:
            PatchError: the factor is not finite.
        """
        if not math.isfinite(factor):
            raise PatchError(f"a patch cannot be scaled by {factor}; give a finite number")
        entries = {path: entry.scaled(factor) for path, entry in self.entries.items()}
        history = tuple(replace(step, scale=step.scale * factor) for step in self.history)
        return Patch(entries, self.base, history, self.state, self.info)

    def compress(self) -> "Patch":
        """The same change with as few factors as it has rank, by an SVD in fp64; itself where none can go."""
        entries = {path: compress(entry) for path, entry in self.entries.items()}
        if all(entries[path] is entry for path, entry in self.entries.items()):
            return self
        return Patch(entries, self.base, self.history, self.state, self.info, (*self.contains, self.id))

    # On disk

    def save(self, folder: str | Path) -> Path:
        """Write the patch as a folder, whole or not at all; returns its path.

        Raises:
            PatchError: the folder is there and holds something else than a patch.
        """
        return files.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Patch":
        """Read a patch from its folder; nothing in it is executed.

        Raises:
            PatchError: it holds no patch, or one that is truncated, altered, or of another format.
        """
        arguments, name = files.load(folder)
        patch = cls(**arguments)
        if patch.id != name:
            raise PatchError(f"{folder} holds patch {patch.id} but says {name}; get the patch again")
        return patch

    def to_lora(self, folder: str | Path, *, base_name: str | None = None, rank: int | None = None) -> LoraExport:
        """Write a LoRA adapter that PEFT, `model.load_adapter` and inference servers load.

        Args:
            folder: a new folder, or that of an earlier adapter.
            base_name: hub id or folder of the base model, where the name in the patch is none.
            rank: the most factors a module may have; dense changes need it, and lose what is beyond it.

        Raises:
            PatchError: the patch stands on another one, changes nothing, or holds what no adapter can express.
        """
        return export_lora(self, folder, base_name=base_name, rank=rank)

    def export_model(
        self, model: nn.Module, tokenizer: Any, folder: str | Path, *, check: bool = True
    ) -> dict[str, float]:
        """Write the merged model as a folder that plain transformers loads; the model in memory ends as it began.

        Returns and raises as `merge` does; also refuses a folder that holds something else.
        """
        if check:
            self.base.check(model, self.entries)
        return merge.export_model(self, model, tokenizer, folder)


def _readable(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"
