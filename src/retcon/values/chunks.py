"""Rows that run together, with all that a clean pass found for them and the descent never changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.lm import LM
from retcon.values.rows import Row

__all__ = ["Chunk", "Past", "cut", "drop_finished", "made"]

Past = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer."""

_SMALL_CHUNK = 160
"""Tokens from which on a chunk of its own is no waste."""
_WORTH_CUTTING = 0.75
"""A chunk is cut once less than this share of its rows is still searched."""


@dataclass(slots=True)
class Chunk:
    """Rows that run together, with all that the clean pass found for them."""

    ids: Int[Tensor, "rows width"]
    mask: Int[Tensor, "rows past_and_width"]
    positions: Int[Tensor, "rows width"]
    column: int
    """Column of the site in `ids`."""
    states: Float[Tensor, "rows width d"] | None
    """Clean input of the first block that runs; None where the whole model runs."""
    past: Past
    """Keys and values of the columns before `ids`, of each layer."""
    fact: Int[Tensor, " rows"]
    target_at: tuple[Tensor, Tensor]
    """Rows and columns whose logits predict target tokens."""
    token: Int[Tensor, " targets"]
    weight: Float[Tensor, " targets"]
    essence: Int[Tensor, " essence"]
    """Rows of the essence term; it is read at the site."""
    clean: Float[Tensor, "essence vocabulary"]
    """Clean log-probabilities there."""

    def kept(self, keep: Bool[Tensor, " rows"]) -> "Chunk":
        """The chunk with only the rows of `keep`."""
        index = keep.nonzero()[:, 0]
        renumbered = keep.cumsum(0) - 1
        rows, columns = self.target_at
        on, essence_on = keep[rows], keep[self.essence]
        return replace(
            self,
            ids=self.ids[index],
            mask=self.mask[index],
            positions=self.positions[index],
            states=None if self.states is None else self.states[index],
            past=[(keys[index], values[index]) for keys, values in self.past],
            fact=self.fact[index],
            target_at=(renumbered[rows[on]], columns[on]),
            token=self.token[on],
            weight=self.weight[on],
            essence=renumbered[self.essence[essence_on]],
            clean=self.clean[essence_on],
        )


def cut(order: Sequence[int], rows: Sequence[Row], chunk_tokens: int, *, whole: bool) -> Iterator[list[int]]:
    """Cut sorted rows into chunks of at most `chunk_tokens` tokens run, and of a third as many logits read.

    A chunk also ends where the next row is so much wider that padding would cost more than a chunk of its own.
    """
    batch: list[int] = []
    reads = 0
    for i in order:
        width = len(rows[i].ids) - (0 if whole else rows[i].site)
        more = len(rows[i].target) or 1
        if batch:
            first = len(rows[batch[0]].ids) - (0 if whole else rows[batch[0]].site)
            full = (len(batch) + 1) * width > chunk_tokens or reads + more > max(chunk_tokens // 3, 32)
            if full or (width > 1.2 * first and len(batch) * first >= _SMALL_CHUNK):
                yield batch
                batch, reads = [], 0
        batch.append(i)
        reads += more
    if batch:
        yield batch


def made(
    lm: LM,
    rows: Sequence[Row],
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    column: int,
    states: Tensor | None,
    past: Past,
) -> Chunk:
    """A chunk of these rows; targets are read where they are predicted, the essence at the site."""
    device = ids.device
    at = [
        (r, column + len(row.ids) - row.site - len(row.target) + t)
        for r, row in enumerate(rows)
        for t in range(len(row.target))
    ]
    weights = [row.weight / len(row.target) for row in rows for _ in row.target]
    return Chunk(
        ids=ids,
        mask=mask,
        positions=positions,
        column=column,
        states=states,
        past=past,
        fact=torch.tensor([row.fact for row in rows], device=device),
        target_at=(
            torch.tensor([r for r, _ in at], dtype=torch.long, device=device),
            torch.tensor([c for _, c in at], dtype=torch.long, device=device),
        ),
        token=torch.tensor([token for row in rows for token in row.target], dtype=torch.long, device=device),
        weight=torch.tensor(weights, dtype=torch.promote_types(lm.dtype, torch.float32), device=device),
        essence=torch.tensor([r for r, row in enumerate(rows) if not row.target], dtype=torch.long, device=device),
        clean=torch.zeros(0, 0, device=device),
    )


def drop_finished(chunks: list[Chunk], active: Bool[Tensor, " n"]) -> None:
    """Drop the rows of finished facts, once a quarter of a chunk is idle.

    The list is changed in place, chunk by chunk, so that no more than one chunk is ever held twice.
    """
    for place in reversed(range(len(chunks))):
        keep = active[chunks[place].fact]
        alive = int(keep.sum())
        if alive == 0:
            del chunks[place]
        elif alive < _WORTH_CUTTING * len(keep):
            chunks[place] = chunks[place].kept(keep)
