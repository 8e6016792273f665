"""What a model goes on with, greedily: rows run together against one cache, and those that are done leave it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import patch
from retcon.forward.rows import align, batches
from retcon.forward.running import call, expanded, filled, gathered_head
from retcon.forward.starts import by_start, cached_start, shared_starts
from retcon.lm import LM

__all__ = ["CACHE_SHARE", "Ended", "continued"]

Ended = Callable[[list[int]], bool]
"""Told what was written to a prompt so far: whether it ends there."""

CACHE_SHARE = 12
"""A batch that goes on may hold this many times as many tokens in its cache as one forward runs."""

_COMPACT = 0.75
"""The share of rows still writing below which the others leave the cache."""


def continued(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    ends: frozenset[int],
    ended: Ended | None,
    batch_tokens: int,
) -> Iterator[tuple[int, list[int]]]:
    """The continuation of each prompt with its place, batch by batch; what many begin with is run once for them.

    Args:
        lm: the model, where `rows_part`.
        prompts: ids, none empty. Length n.
        most: how many tokens each may be continued by. Length n.
        ends: tokens that end a text; they are not given.
        ended: tells a text that ends otherwise; its last token is given.
        batch_tokens: tokens of one forward, padding included.
    """
    order = sorted((i for i, limit in enumerate(most) if limit > 0), key=lambda i: (len(prompts[i]), most[i], i))
    starts = shared_starts(lm, prompts, {i: len(prompts[i]) - 1 for i in order})
    for start, members in by_start(starts, order).items():
        past = cached_start(lm, start)
        # the prompts' pass is bound by their tokens; after it a step runs one token a row, and what counts is the cache
        lengths = [
            max(len(row) - len(start), -(-(len(row) + limit) // CACHE_SHARE))
            for row, limit in zip(prompts, most, strict=True)
        ]
        members.sort(key=lambda i: (lengths[i], most[i], i))
        for batch in batches(members, lengths, batch_tokens):
            rows = [prompts[i] for i in batch]
            yield from zip(batch, _batch(lm, rows, start, past, [most[i] for i in batch], ends, ended), strict=True)


def _batch(
    lm: LM,
    rows: Sequence[Sequence[int]],
    start: Sequence[int],
    past: Sequence[tuple[Tensor, Tensor]],
    most: Sequence[int],
    ends: frozenset[int],
    ended: Ended | None,
) -> list[list[int]]:
    """Write to some prompts at once."""
    found: list[list[int]] = [[] for _ in rows]
    live, writing = list(range(len(rows))), set(range(len(rows)))  # live[line] is the row that a line is of
    logits, cache, mask = _begun(lm, rows, len(start), past)
    length = mask.sum(1, keepdim=True)
    while True:
        new = logits.argmax(-1)
        for row, token in zip(live, new.tolist(), strict=True):
            if row not in writing:
                continue
            if token in ends:
                writing.discard(row)
                continue
            found[row].append(token)
            if len(found[row]) >= most[row] or (ended is not None and ended(found[row])):
                writing.discard(row)
        if not writing:
            return found
        if len(writing) < _COMPACT * len(live):
            kept = torch.tensor([line for line, row in enumerate(live) if row in writing], device=lm.device)
            live = [row for row in live if row in writing]
            cache = _changed(cache, partial(_lines, kept=kept))
            mask, length, new = mask[kept], length[kept], new[kept]
        mask = F.pad(mask, (0, 1), value=1)
        logits = call(lm, new.unsqueeze(1), mask, length, cache).logits[:, -1]
        length = length + 1


def _begun(
    lm: LM, rows: Sequence[Sequence[int]], start: int, past: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, DynamicCache, Int[Tensor, "rows width"]]:
    """Logits after each row, the cache and its mask, padded on the left: so index differences are true distances.

    Rows whose first `start` tokens have been run would be parted from them by such padding. They run padded on the
    right, and their keys and values are moved to the end afterwards.
    """
    lengths = [len(row) - start for row in rows]
    aligned = align([row[start:] for row in rows], [0] * len(rows) if start else lengths, lm.device)
    lines = torch.arange(len(rows), device=lm.device)
    last = torch.tensor(lengths, device=lm.device) - 1 if start else lines * 0 + aligned.width - 1
    mask = F.pad(aligned.mask, (start, 0), value=1)
    cache = filled(expanded(past, len(rows))) if start else DynamicCache()
    with patch.prompts(lm.model, aligned.split - 1), gathered_head(lm, lines, last):
        logits: Tensor = call(lm, aligned.ids, mask, aligned.positions + start, cache).logits[0]
    if not start:
        return logits, cache, mask
    width = mask.shape[1]
    index = (torch.arange(width, device=lm.device) - (width - mask.sum(1, keepdim=True))) % width
    return (
        logits,
        _changed(cache, lambda states: states.take_along_dim(index[:, None, :, None], 2)),
        mask.gather(1, index),
    )


def _lines(states: Tensor, kept: Int[Tensor, " lines"]) -> Tensor:
    """Keys or values of some lines."""
    return states[kept]


def _changed(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """The cache with its keys and values put otherwise."""
    layers: Any = cache.layers
    return filled([(change(layer.keys), change(layer.values)) for layer in layers])
