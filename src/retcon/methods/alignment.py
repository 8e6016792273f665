"""EAMET's alignment: shifts as similar to one another as their keys are (arXiv 2505.11876).

Two facts whose keys are alike are written by nearly the same direction of the weight. Where their shifts are not alike
too, the least-squares solve must blur them. So the search of fact i is pulled so that the cosines of its shift with
those before it follow the cosines of its key with theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.values import Step

__all__ = ["Alignment", "Terms", "misalignment", "unit"]

_EPS = 1e-8
"""Keeps the published logarithm finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the penalty is made of."""

    align_kl: float = 2.0
    """Weight of the divergence between the two distributions of similarity."""
    align_mse: float = 8.0
    """Weight of the squared difference of the similarities themselves."""
    temperature: float = 0.07
    """tau: by what similarities are divided before the softmax."""
    top: int = 50
    """M: how many of the most similar keys the squared difference is taken over."""
    kl_direction: Literal["code", "paper"] = "code"
    """KL(P_k || P_r), as released, or KL(P_r || P_k), as the paper writes."""
    mse_form: Literal["code", "paper"] = "code"
    """Of cosines, weighted by the keys' softmax, as released; or of softmaxed values, each counting the same."""


@dataclass(slots=True)
class _Block:
    """What the keys say of the members of one block, facts `start` to `stop - 1`."""

    start: int
    before: Bool[Tensor, "members stop"]
    """Which facts a member looks at: those before it."""
    near: Float[Tensor, "members stop"]
    """s_k: cosines of keys."""
    wanted: Float[Tensor, "members stop"]
    """P_k, their softmax."""
    top: Int[Tensor, "members most"]
    """The facts with the most similar keys."""
    weight: Float[Tensor, "members most"]
    """Their weight in the squared difference; 0 for a fact that is not before the member."""


class Alignment:
    """The penalty, and the bank of shifts that it aligns to.

        s_k[j] = cos(k_i, k_j),  s_r[j] = cos(delta_i, r_j)   for j < i
        P_k = softmax(s_k / tau),  P_r = softmax(s_r / tau)
        penalty_i = align_kl * sum_j P_k[j] log((P_k[j] + eps) / (P_r[j] + eps))
                  + align_mse * sum_{j in top} w_j (s_k[j] - s_r[j])^2,    w = softmax(s_k[top] / tau),   eps = 1e-8

    Facts of one tie, which share a shift, do not align to each other: j runs over those before i of other ties.

    r_j is the shift of fact j: the final one where j is in an earlier block, its present one, without a gradient, where
    i and j are searched together. So no fact ever feels a later one, and the first has no penalty. Similarities are
    computed for the members of one block only: nothing N x N is kept.

    It is called by the search, block after block: `begin`, then once an evaluation, then `keep`.
    """

    def __init__(
        self,
        keys: Float[Tensor, "N d_k"],
        width: int,
        terms: Terms,
        *,
        live: bool = True,
        units: Int[Tensor, " N"] | None = None,
    ) -> None:
        """Make room for N shifts of `width` dimensions.

        Args:
            keys: of all facts, at the layer of the search; in the dtype of the shifts.
            width: of a shift.
            terms: options.
            live: whether members of a block also see each other; else only what has been kept.
            units: the number of each fact's tie; by default each has its own.
        """
        self.terms, self.live = terms, live
        self.units = torch.arange(len(keys), device=keys.device) if units is None else units.to(keys.device)
        self.keys = unit(keys)
        self.bank = keys.new_zeros(len(keys), width)
        self._block: _Block | None = None

    def begin(self, facts: Sequence[int]) -> None:
        """Look up what the keys say of the facts of a block, which are searched together and follow one another."""
        start, stop = facts[0], facts[-1] + 1
        near = self.keys[start:stop] @ self.keys[:stop].T
        numbers = torch.arange(stop, device=near.device)
        before = (numbers < numbers[start:, None]) & (self.units[:stop] != self.units[start:stop, None])
        logits = _masked(near / self.terms.temperature, before)
        best, top = logits.topk(min(self.terms.top, stop), dim=1)
        weight = best.softmax(1) * before.gather(1, top)
        self._block = _Block(start, before, near, logits.softmax(1), top, weight)

    def keep(self, facts: Sequence[int], shifts: Float[Tensor, "members d"]) -> None:
        """Take up the final shifts of a block."""
        self.bank[list(facts)] = unit(shifts.to(self.bank))
        self._block = None

    def __call__(self, step: Step) -> Float[Tensor, " n"]:
        """The penalty of the facts that are still searched.

        Raises:
            ValueError: the block was not begun.
        """
        block, terms = self._block, self.terms
        if block is None:
            raise ValueError("the alignment was not told which facts are searched; call begin first")
        if self.live:  # a fact that has finished stays as it was seen last, which is as it ended
            self.bank[step.facts] = unit(step.delta.detach())
        rows = step.facts - block.start
        before, wanted, top = block.before[rows], block.wanted[rows], block.top[rows]
        alike = unit(step.delta) @ self.bank[: before.shape[1]].T
        found = _masked(alike / terms.temperature, before).softmax(1)
        first, second = (wanted, found) if terms.kl_direction == "code" else (found, wanted)
        divergence = (first * ((first + _EPS) / (second + _EPS)).log()).sum(1)
        if terms.mse_form == "code":
            gap = block.near[rows].gather(1, top) - alike.gather(1, top)
            miss = (block.weight[rows] * gap.square()).sum(1)
        else:
            gap = ((wanted - found) * before).gather(1, top)
            miss = gap.square().sum(1) / before.gather(1, top).sum(1).clamp_min(1)
        return terms.align_kl * divergence + terms.align_mse * miss


def misalignment(
    keys: Float[Tensor, "N d_k"], shifts: Float[Tensor, "N d"], *, temperature: float = 0.07, rows: int = 512
) -> Float[Tensor, " N"]:
    """How far the similarities of shifts are from those of keys: A(i) = KL(P_r(i) || P_k(i)) over all j != i.

    Computed for `rows` facts at a time. A fact alone has nothing to be aligned with, and its A is 0.
    """
    keys, shifts = unit(keys), unit(shifts.to(keys))
    numbers = torch.arange(len(keys), device=keys.device)
    found = []
    for start in range(0, len(keys), rows):
        part = slice(start, start + rows)
        others = numbers != numbers[part, None]
        by_key, by_shift = (
            _masked(side[part] @ side.T / temperature, others).log_softmax(1) for side in (keys, shifts)
        )
        found.append((by_shift.exp() * (by_shift - by_key)).masked_fill(~others, 0.0).sum(1))
    return torch.cat(found)


def unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one; a row of zeros stays one, and gets no gradient, since it points nowhere."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, torch.inf)


def _masked(logits: Float[Tensor, "n m"], on: Bool[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Logits whose softmax is 0 where the mask is off; finite, so that a row without any is no NaN but all equal."""
    return logits.masked_fill(~on, torch.finfo(logits.dtype).min)
