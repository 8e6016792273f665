"""Where the tokens of contexts stand among those of the rows that they go before."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Placement"]


class Placement(NamedTuple):
    """Rows with their contexts among them."""

    ids: Int[Tensor, "rows added_and_width"]
    mask: Bool[Tensor, "rows added_and_width"]
    own: Bool[Tensor, "rows added_and_width"]
    """Which columns hold the rows' own tokens."""
    positions: Int[Tensor, "rows added_and_width"]
    added: int
    """Columns on the left that the caller does not know of."""

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, "rows width"],
        attended: Bool[Tensor, "rows width"],
        positions: Int[Tensor, "rows width"],
        heads: Sequence[int],
        texts: Sequence[Sequence[int]],
    ) -> "Placement":
        """Put a text into each row, after its first `heads[r]` tokens; a row with an empty text stays as it is."""
        starts: list[int] = []  # the column of the token that each text comes before
        for row, head in enumerate(heads):
            columns = attended[row].nonzero()[:, 0].tolist()
            starts.append(columns[head] if head < len(columns) else (columns[-1] + 1 if columns else 0))
        needed = [len(text) + head - at for text, head, at in zip(texts, heads, starts, strict=True) if text]
        added = max([0, *needed])
        rows, device = len(ids), ids.device
        none = torch.zeros(rows, added, dtype=torch.long, device=device)
        wide, mask = torch.cat([none, ids], 1), torch.cat([none.bool(), attended], 1)
        where, own = torch.cat([none, positions], 1), mask.clone()
        for row, (text, head, at) in enumerate(zip(texts, heads, starts, strict=True)):
            if not text:
                continue
            first = attended[row].nonzero()[:head, 0]
            end = at + added
            begin = end - len(text)
            front = torch.tensor([*ids[row, first].tolist(), *text], device=device)
            base = int(positions[row, attended[row].nonzero()[0, 0]])
            mask[row, :end], own[row, :end] = False, False
            mask[row, begin - head : end], own[row, begin - head : begin] = True, True
            wide[row, begin - head : end] = front
            where[row, : begin - head] = 0
            where[row, begin - head : end] = base + torch.arange(len(front), device=device)
            where[row, end:] += len(text)
        return cls(wide, mask, own, where, added)
