"""Several entries on one module, one after the other; joining and compressing entries of whatever kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch import entries
from retcon.patch.entries import Entry
from retcon.patch.forward_record import ForwardRecord

__all__ = ["Chain", "chained", "combine", "compress", "parts_of"]


@dataclass(frozen=True, eq=False, slots=True)
class Chain:
    """Entries of one module, each applied to what those before it gave; not all of them are changes of its weight.

    Args:
        parts: two or more, in order; none of them a chain.
    """

    parts: tuple[Entry, ...]
    kind: ClassVar[str] = "chain"
    folds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shapes = {part.shape for part in self.parts}
        if len(self.parts) < 2 or len(shapes) > 1:
            raise PatchError(f"a chain is of two entries or more for the same module, not of shapes {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""
        return self.parts[0].shape

    @property
    def rank(self) -> int:
        """The sum of the parts' ranks; 0 where none does anything."""
        return sum(part.rank for part in self.parts)

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """Each part on the output of the one before it; all of them see the same input."""
        for number, part in enumerate(self.parts):
            y = part.apply(x, y, None if record is None or part.folds else record.part(str(number)))
        return y

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """None: raises the PatchError of the part that is no change of a weight."""
        return next(part for part in self.parts if not part.folds).delta()

    def scaled(self, factor: float) -> "Chain":
        """Each part with `factor` times the effect."""
        return Chain(tuple(part.scaled(factor) for part in self.parts))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Chain":
        """The entry on another device, in another dtype."""
        return Chain(tuple(part.to(device, dtype) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """Those of the parts, by number and name."""
        pairs = enumerate(self.parts)
        return {f"{number}.{name}": tensor for number, part in pairs for name, tensor in part.tensors().items()}

    def settings(self) -> dict[str, Any]:
        """Kind and settings of each part."""
        return {"parts": [{"kind": part.kind, "settings": part.settings()} for part in self.parts]}


def parts_of(entry: Entry) -> tuple[Entry, ...]:
    """The entries that an entry is made of: a chain's parts, or itself."""
    return entry.parts if isinstance(entry, Chain) else (entry,)


def combine(first: Entry, second: Entry) -> Entry:
    """The entry that does what both do, one after the other.

    Changes of the weight are added, in factors where both have them; what looks at the prompt keeps its place in order.

    Raises:
        PatchError: the two are for modules of different shapes.
    """
    if first.shape != second.shape:
        raise PatchError(f"changes of shapes {first.shape} and {second.shape} cannot be for the same module")
    joined: list[Entry] = []
    for part in (*parts_of(first), *parts_of(second)):
        if joined and joined[-1].folds and part.folds:
            joined[-1] = entries.combine(joined[-1], part)
        else:
            joined.append(part)
    return chained(joined)


def chained(parts: Sequence[Entry]) -> Entry:
    """Entries as one, those that do nothing left out; the last of them where all do nothing."""
    acting = [part for part in parts if part.rank > 0] or list(parts)[-1:]
    return acting[0] if len(acting) == 1 else Chain(tuple(acting))


def compress(entry: Entry) -> Entry:
    """The same change with as few factors as it has rank; the entry itself where nothing can be spared."""
    if not isinstance(entry, Chain):
        return entries.compress(entry)
    parts = tuple(entries.compress(part) for part in entry.parts)
    return entry if all(a is b for a, b in zip(parts, entry.parts, strict=True)) else Chain(parts)
