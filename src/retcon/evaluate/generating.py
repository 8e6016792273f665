"""What a model writes after a prompt by itself: greedily, until it ends the text, breaks the line, or has had enough.

Rows run together against one cache, and those that are done leave it. What comes out is what the model writes to each
prompt alone, up to the rounding of its forward.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, patch, progress, tokens
from retcon.lm import LM

__all__ = ["MOST_TOKENS", "budget", "said", "written"]

MOST_TOKENS = 32
"""No answer is written longer than this."""

_SPARE = 8
"""Tokens allowed beyond twice the longest accepted answer: for an article, or numbers and dates in words."""

_BATCH_TOKENS, _CACHE_SHARE = 1536, 12
"""Prompt tokens of one forward with padding, and how many times as many a batch may come to hold."""

_COMPACT = 0.75
"""The share of rows still writing below which the others leave the cache."""


def budget(longest: int) -> int:
    """How many tokens may be written where the longest accepted answer has `longest`.

    Only the beginning is judged, so a short answer needs no long text.

    >>> budget(1), budget(5), budget(40)
    (10, 18, 32)
    """
    return min(MOST_TOKENS, 2 * longest + _SPARE)


def said(lm: LM, ids: Sequence[int]) -> str:
    """The text of what was written, on one line: up to the first line break after something that is no white space.

    Args:
        lm: the model, for its tokenizer.
        ids: of `written`.
    """
    return tokens.decode(lm, list(ids)).strip().partition("\n")[0].strip()


def written(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    *,
    batch_tokens: int = _BATCH_TOKENS,
    label: str = "writing answers",
) -> list[list[int]]:
    """Continue each prompt greedily: to the end token (not returned), to a line break after something written, or by
    `most` tokens.

    Args:
        lm: the model, with any patch already on.
        prompts: ids, none empty. Length n.
        most: how many tokens each may be continued by, at least 1. Length n.
        batch_tokens: tokens of one forward, padding included.
        label: what the progress is called.
    """
    if not prompts:
        return []
    stop = _Stop(lm)
    if not _together(lm):
        return _by_limit(lm, prompts, most, stop, label)
    lengths = [max(len(row), -(-(len(row) + limit) // _CACHE_SHARE)) for row, limit in zip(prompts, most, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], most[i], i))
    found: list[list[int]] = [[] for _ in prompts]
    with lm.inference(), progress.task(label, len(prompts)) as advance:
        for batch in forward.batches(order, lengths, batch_tokens):
            rows = _batch(lm, [prompts[i] for i in batch], [most[i] for i in batch], stop)
            for i, row in zip(batch, rows, strict=True):
                found[i] = row
            advance(len(batch))
    return found


def _together(lm: LM) -> bool:
    """Whether rows may leave a batch: not where a memory follows each row's cache, or where none serves."""
    memories = any(not entry.folds for item in patch.active(lm.model) for entry in item.entries.values())
    return not memories and forward.cache_holds(lm)


def _by_limit(
    lm: LM, prompts: Sequence[Sequence[int]], most: Sequence[int], stop: "_Stop", label: str
) -> list[list[int]]:
    """Rows that stay together to the end run beside others of the same limit, none for longer than its own."""
    found: list[list[int]] = [[] for _ in prompts]
    for limit in sorted(set(most)):
        places = [i for i, own in enumerate(most) if own == limit]
        rows = forward.greedy(lm, [list(prompts[i]) for i in places], max_new_tokens=limit, label=label)
        for i, row in zip(places, rows, strict=True):
            found[i] = stop.cut(row)
    return found


class _Stop:
    """Knows when a text has ended."""

    def __init__(self, lm: LM) -> None:
        self._lm, self._ends = lm, frozenset(forward.end_ids(lm))
        self._breaks: dict[int, bool] = {}

    def ends(self, token: int) -> bool:
        """Whether the token ends every text."""
        return token in self._ends

    def broken(self, row: list[int]) -> bool:
        """Whether the last token of a row breaks a line on which, or above which, something stands."""
        last = row[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in tokens.decode(self._lm, [last])
        return self._breaks[last] and "\n" in tokens.decode(self._lm, row).lstrip()

    def cut(self, row: list[int]) -> list[int]:
        """A row up to the token with which it breaks the line."""
        return next((row[:n] for n in range(1, len(row) + 1) if self.broken(row[:n])), row)


def _batch(lm: LM, rows: Sequence[Sequence[int]], most: Sequence[int], stop: _Stop) -> list[list[int]]:
    """Write to some prompts at once."""
    aligned = forward.align(rows, [len(row) for row in rows], lm.device)
    lines = torch.arange(len(rows), device=lm.device)
    found: list[list[int]] = [[] for _ in rows]
    writing, live = (
        set(range(len(rows))),
        list(range(len(rows))),
    )  # live[line] is the row that a line of the cache is of
    cache, mask = DynamicCache(), aligned.mask
    length = mask.sum(1, keepdim=True)
    with patch.prompts(lm.model, aligned.split - 1), forward.gathered_head(lm, lines, lines * 0 + aligned.width - 1):
        logits: Tensor = forward.call(lm, aligned.ids, mask, aligned.positions, cache).logits[0]
    while True:
        new = logits.argmax(-1)
        for row, token in zip(live, new.tolist(), strict=True):
            if row not in writing:
                continue
            if stop.ends(token):
                writing.discard(row)
                continue
            found[row].append(token)
            if len(found[row]) >= most[row] or stop.broken(found[row]):
                writing.discard(row)
        if not writing:
            return found
        if len(writing) < _COMPACT * len(live):
            kept = torch.tensor([line for line, row in enumerate(live) if row in writing], device=lm.device)
            live = [row for row in live if row in writing]
            cache, mask, length, new = _of(cache, kept), mask[kept], length[kept], new[kept]
        mask = F.pad(mask, (0, 1), value=1)
        logits = forward.call(lm, new.unsqueeze(1), mask, length, cache).logits[:, -1]
        length = length + 1


def _of(cache: DynamicCache, lines: Tensor) -> DynamicCache:
    """The cache of some of its lines."""
    layers: Any = cache.layers
    return forward.filled([(layer.keys[lines], layer.values[lines]) for layer in layers])
