"""WISE's arithmetic without a model: the loss of the margins, masks, the merge of shards, which memory an edit goes to.

Wang et al., arXiv 2405.14768; the merge is TIES (Yadav et al., arXiv 2306.01708).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retcon.patch.gated import Memory
from retcon.storage import digest

__all__ = ["Margins", "Shards", "Variant", "drawn_mask", "generator", "margin_loss", "replay_loss", "ties"]

Variant = Literal["retrieve", "merge"]

_OLD_SHARE = 0.6
"""Weight of what is merged already, where new shards are merged into it."""


@dataclass(frozen=True, slots=True)
class Margins:
    """Scores that prompts are to have, in the units of the score."""

    outside: float
    """Ordinary prompts stay below it (alpha)."""
    inside: float
    """Edited prompts reach it (beta)."""
    between: float
    """Edited prompts are above ordinary ones by it (gamma)."""

    def scaled(self, factor: float) -> "Margins":
        """All three times a factor."""
        return Margins(self.outside * factor, self.inside * factor, self.between * factor)


def margin_loss(inside: Float[Tensor, " k"], outside: Float[Tensor, " n"], margins: Margins) -> Float[Tensor, ""]:
    """[d_out - d_in + gamma]+ + [d_out - alpha]+ + [beta - d_in]+, each averaged over its positive items.

    Args:
        inside: d_in, scores of an edit's rows.
        outside: d_out, scores of ordinary rows; the first term is of all pairs.
        margins: alpha, beta and gamma.
    """
    between = outside[None, :] - inside[:, None] + margins.between  # (k, n)
    return _positive(between) + _positive(outside - margins.outside) + _positive(margins.inside - inside)


def replay_loss(others: Sequence[Float[Tensor, " n"]], own: Float[Tensor, " k"], margins: Margins) -> Float[Tensor, ""]:
    """[d_other - alpha]+ averaged over groups, + [beta - d_own]+; each averaged over its positive items.

    Args:
        others: scores, for the memory that is trained, of an edit of each other memory, row by row.
        own: scores of an earlier edit of the very memory; none where it has no other.
        margins: alpha and beta.
    """
    kept_out = [_positive(scores - margins.outside) for scores in others]
    kept_in = _positive(margins.inside - own)
    return torch.stack(kept_out).mean() + kept_in if kept_out else kept_in


def _positive(values: Tensor) -> Tensor:
    """The mean of the positive ones; zero where there is none."""
    return values.clamp_min(0).sum() / (values > 0).sum().clamp_min(1)


def ties(
    deltas: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], density: float
) -> Float[Tensor, "*shape"]:
    """The merge of changes of one weight: trim, elect a sign, average what agrees with it.

    Of each change the top `density` share of entries by size is kept; s = sign(sum_j w_j D_j), plus where that is zero;
    the result is sum_j w_j D_j m_j / sum_j w_j m_j over the entries that are not zero and have the sign s, and zero
    where there is none.

    Args:
        deltas: one or more, of one shape.
        weights: one positive number each.
        density: share of a change's entries to keep, in (0, 1].
    """
    kept = [_trimmed(delta, density) for delta in deltas]
    total = torch.zeros_like(kept[0])
    for weight, delta in zip(weights, kept, strict=True):
        total += weight * delta
    positive = total >= 0
    above, below = torch.zeros_like(total), torch.zeros_like(total)
    for weight, delta in zip(weights, kept, strict=True):
        agrees = (delta != 0) & ((delta > 0) == positive)
        above += torch.where(agrees, weight * delta, 0)
        below += weight * agrees
    return torch.where(below > 0, above / below.clamp_min(1e-30), 0)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries of a change, the rest zero."""
    keep = max(round(density * delta.numel()), 1)
    if int((delta != 0).sum()) <= keep:  # most shards: only masked entries differ from zero
        return delta
    flat = delta.flatten()
    places = flat.abs().topk(keep).indices
    return torch.zeros_like(flat).index_copy(0, places, flat[places]).view_as(delta)


def generator(seed: int, *what: object) -> torch.Generator:
    """Random numbers of their own for each purpose, the same wherever a run begins."""
    return torch.Generator().manual_seed(int(digest(seed, *map(str, what))[:15], 16))


def drawn_mask(seed: int, number: int, size: tuple[int, int], share: float) -> Bool[Tensor, "d_out d_in"]:
    """The entries that shard `number` may change: each with probability `share`, by itself."""
    return torch.rand(size, generator=generator(seed, "mask", number)) < share


@dataclass(slots=True)
class Shards:
    """The memories of one projection as edits come in: one is open, the others are closed or merged."""

    size: tuple[int, int]
    """(d_out, d_in)."""
    seed: int
    mask_ratio: float
    save_freq: int
    """Edits after which a shard is closed."""
    merge_freq: int | None
    """Edits, a multiple of `save_freq`, after which closed shards are merged; None for never."""
    density: float
    variant: Variant
    opened: int = 0
    """Shards opened so far: the number of the next mask."""
    memories: list[Memory] = field(default_factory=list)
    """Those that are not open."""
    live: Memory | None = None

    def open(self) -> Memory:
        """The open memory; a new one, which is the module itself, where there is none."""
        if self.live is None:
            mask = drawn_mask(self.seed, self.opened, self.size, self.mask_ratio)
            self.live = Memory(mask, torch.zeros(self.size), float("inf"), (), "live")
            self.opened += 1
        return self.live

    def learn(self, name: str, delta: Float[Tensor, "d_out d_in"], threshold: float) -> None:
        """Enter an edit into the open memory, which now is `delta`."""
        live = self.open()
        self.live = live._replace(delta=delta, names=(*live.names, name), threshold=min(live.threshold, threshold))

    def settle(self, measure: Callable[[Memory], float], *, end: bool) -> None:
        """Close the open memory where it is full, and merge where enough are closed; measure what has changed.

        Args:
            measure: the threshold of a memory as it stands.
            end: whether a run ends: then the open memory is measured though it stays open, and in the merge variant
                no closed shard is left unmerged, since nothing would ever route to it.
        """
        if self.live is not None and (end or len(self.live.names) >= self.save_freq):
            self.live = self.live._replace(threshold=measure(self.live))
        if self.live is not None and len(self.live.names) >= self.save_freq:
            self.memories.append(self.live._replace(role="shard"))
            self.live = None
        waiting = [memory for memory in self.memories if memory.role == "shard"]
        full = self.merge_freq is not None and len(waiting) >= self.merge_freq // self.save_freq
        if waiting and (full or (end and self.variant == "merge")):
            self._merge(waiting, measure)

    def _merge(self, waiting: list[Memory], measure: Callable[[Memory], float]) -> None:
        rest = [memory for memory in self.memories if memory.role == "merged"]
        parts, weights = waiting, [1 / len(waiting)] * len(waiting)
        if self.variant == "merge" and rest:
            parts = [*rest, *waiting]
            weights = [_OLD_SHARE, *[(1 - _OLD_SHARE) / len(waiting)] * len(waiting)]
            rest = []
        delta = ties([part.delta for part in parts], weights, self.density)
        names = tuple(name for part in parts for name in part.names)
        merged = Memory(delta != 0, delta, min(part.threshold for part in parts), names, "merged")
        self.memories = [*rest, merged._replace(threshold=measure(merged))]

    def all(self) -> list[Memory]:
        """Closed and merged memories, then the open one."""
        return [*self.memories, *([] if self.live is None else [self.live])]

    def restore(self, memories: Sequence[Memory], opened: int) -> None:
        """Go on from the memories of a patch."""
        self.memories = [memory for memory in memories if memory.role != "live"]
        self.live = next((memory for memory in memories if memory.role == "live"), None)
        self.opened = opened
