"""Rows of ids as batches, aligned at one column."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from retcon.errors import RequestError

__all__ = ["Aligned", "align", "batches", "refuse_empty"]


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows of ids as one batch; token 0 of a row's right part stands at column `split`."""

    ids: Int[Tensor, "rows width"]
    mask: Int[Tensor, "rows width"]
    positions: Int[Tensor, "rows width"]
    split: int

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.ids.shape[1]


def align(rows: Sequence[Sequence[int]], splits: Sequence[int], device: torch.device) -> Aligned:
    """Lay rows out so that token `splits[i]` of row i stands in one common column."""
    split = max(splits)
    width = split + max(len(row) - at for row, at in zip(rows, splits, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (row, at) in enumerate(zip(rows, splits, strict=True)):
        start = split - at
        ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, start : start + len(row)] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return Aligned(ids.to(device), mask.to(device), positions.to(device), split)


def batches(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Cut `order` (sorted by length) into batches of at most `tokens` padded tokens."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def refuse_empty(rows: Sequence[Sequence[int]], name: str) -> None:
    """An empty row would be read at a column of padding."""
    if any(not row for row in rows):
        raise RequestError(f"a {name} has no token; write at least one character")
