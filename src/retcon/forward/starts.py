"""What many rows begin with, run once for all of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import patch, tokens
from retcon.forward.probes import cache_holds
from retcon.forward.rows import align
from retcon.forward.running import call, gathered_head
from retcon.lm import LM
from retcon.tokens import Located

__all__ = ["by_start", "cached_start", "rows_part", "shared_starts"]

_SHARED_TOKENS, _SAVED_TOKENS = 8, 128
"""First tokens by which rows that begin alike are found, and tokens saved from which on a run of their own pays."""


def rows_part(lm: LM) -> bool:
    """Whether a row's keys and values may be taken out of its batch, or shared with others: not where a memory is on
    the model, which decides by the whole prompt and follows each row's cache, or where no cache serves."""
    memories = any(not entry.folds for item in patch.active(lm.model) for entry in item.entries.values())
    return not memories and cache_holds(lm)


def shared_starts(lm: LM, rows: Sequence[Sequence[int]], lasts: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """What rows begin with that enough others begin with too, for those rows for which it is worth a run of its own.

    Args:
        lm: the model, with any patch already on.
        rows: ids.
        lasts: of the rows that may be parted from their beginning, in order: the token that must run with its row.
    """
    if not rows_part(lm):
        return {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, last in lasts.items():
        if last >= _SHARED_TOKENS:
            groups.setdefault(tuple(rows[i][:_SHARED_TOKENS]), []).append(i)
    found: dict[int, tuple[int, ...]] = {}
    for members in groups.values():
        shared = tokens.common_start([Located(list(rows[i]), lasts[i]) for i in members])
        if (len(members) - 1) * shared >= _SAVED_TOKENS:
            found |= dict.fromkeys(members, tuple(rows[members[0]][:shared]))
    return found


def by_start(starts: Mapping[int, tuple[int, ...]], order: Iterable[int]) -> dict[tuple[int, ...], list[int]]:
    """Rows by what they begin with, in order; those that begin as no others do come first."""
    found: dict[tuple[int, ...], list[int]] = {(): []}
    for i in order:
        found.setdefault(starts.get(i, ()), []).append(i)
    return found


def cached_start(lm: LM, start: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of some first tokens, of one row; none of no token."""
    if not start:
        return []
    row, cache = align([start], [0], lm.device), DynamicCache()
    none = torch.zeros(1, dtype=torch.long, device=lm.device)
    with gathered_head(lm, none, none):
        call(lm, row.ids, row.mask, row.positions, cache)
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
