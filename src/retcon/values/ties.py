"""Facts that share one shift, as queries to forget do that are merged.

With members i of a tie, each with its own clean state h0_i, the search seeks one delta:

    J(delta) = mean_i J_i(delta),   z_i = h0_i + delta

so what is sought is what is written. Each member keeps a copy of the shift, and all copies are told the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.requests import Edit, tied
from retcon.values.loss import Evaluation

__all__ = ["Ties"]


@dataclass(frozen=True, slots=True)
class Ties:
    """Which of n facts share a shift; a fact without a tie is one of its own."""

    unit: Int[Tensor, " n"]
    """The unit of each fact."""
    sizes: Int[Tensor, " units"]

    @classmethod
    def of(cls, edits: Sequence[Edit], device: torch.device) -> Self | None:
        """The ties of some edits; None where no two of them share one."""
        units = tied(edits)
        if len(units) == len(edits):
            return None
        unit = torch.zeros(len(edits), dtype=torch.long)
        for number, members in enumerate(units):
            unit[members] = number
        return cls(unit.to(device), torch.bincount(unit).to(device))

    def mean(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """For each fact, the mean over its unit."""
        sums = values.new_zeros(len(self.sizes), *values.shape[1:]).index_add_(0, self.unit, values)
        return (sums / self.sizes.view(-1, *[1] * (values.ndim - 1)))[self.unit]

    def least(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """For each fact, the least over its unit."""
        room = values.new_full((len(self.sizes),), torch.inf)
        return room.scatter_reduce_(0, self.unit, values, "amin")[self.unit]

    def every(self, marks: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """For each fact, whether all of its unit are marked."""
        return self.least(marks.float()) > 0

    def together(self, seen: Evaluation) -> Evaluation:
        """What stops go by, so that all of a unit stop at once; likelihoods stay each fact's own."""
        return replace(seen, drift=self.mean(seen.drift), least=self.least(seen.least), hit=self.every(seen.hit))
