"""Which of many keys may be near a query, told by few of their coordinates: a bound that only errs on the safe side."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Screen"]

_SHARE = 4
"""One coordinate in so many is looked at."""


@dataclass(frozen=True, eq=False, slots=True)
class Screen:
    """The coordinates in which some keys differ most, less their mean.

    The distance of two vectors is at least that of some of their coordinates, so that a product with a quarter of the
    keys' bytes shows which of them are too far away.
    """

    where: Int[Tensor, " m"]
    """The coordinates."""
    centre: Float[Tensor, " m"]
    """Their mean over all keys; without it, digits would be lost."""
    keys: Float[Tensor, "n m"]
    halves: Float[Tensor, " n"]
    """|k|^2 / 2."""

    @classmethod
    def of(cls, keys: Float[Tensor, "n d"]) -> "Screen":
        """The screen of some keys."""
        spread, mean = torch.var_mean(keys, 0, correction=0)
        where = spread.topk(max(keys.shape[1] // _SHARE, 1)).indices
        chosen = keys[:, where] - mean[where]
        return cls(where, mean[where], chosen, chosen.square().sum(1) / 2)

    def lower(self, queries: Float[Tensor, "rows d"]) -> Float[Tensor, "rows n"]:
        """A lower bound of the squared distance of each query to each key, which allows for the product's rounding."""
        chosen = queries[:, self.where] - self.centre
        halves = chosen.square().sum(1, keepdim=True) / 2
        apart = torch.addmm(self.halves, chosen, self.keys.T, alpha=-1) + halves  # half of the squared distance
        # |rounding of k.q| <= m eps |k| |q| <= m eps (|k|^2 + |q|^2) / 2; as much again for the sums of squares
        rounding = 2 * (len(self.where) + 8) * _eps(queries) * (halves + self.halves.max())
        return 2 * (apart - rounding)


def _eps(values: Tensor) -> float:
    """The relative rounding error of a factor in a product; with TF32 on, its ten bits are all that is read."""
    rough = values.is_cuda and values.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return 2.0**-10 if rough else torch.finfo(values.dtype).eps
