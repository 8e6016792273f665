"""How likely a model finds given continuations, teacher-forced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import patch, progress
from retcon.forward.probes import cache_holds
from retcon.forward.rows import Aligned, align, batches, refuse_empty
from retcon.forward.running import expanded, filled, logits_at
from retcon.forward.starts import by_start, cached_start, shared_starts
from retcon.lm import LM

__all__ = ["Scored", "score"]


class Scored(NamedTuple):
    """How a model rates one continuation, teacher-forced."""

    logprobs: list[float]
    """Log-probability of each token, in nats."""
    hits: list[bool]
    """Whether each token is the argmax."""


def score(
    lm: LM, items: Sequence[tuple[list[int], Sequence[list[int]]]], *, batch_tokens: int = 1024, label: str = "scoring"
) -> list[list[Scored]]:
    """Score the continuations of each prompt, running each prompt once.

    A prompt and its longest continuation are one row; further continuations of one token cost nothing, longer ones run
    against the prompt's cached keys and values. What many prompts begin with is run once, for all of them.

    Args:
        lm: the model, with any patch already on.
        items: (prompt ids, continuations as ids) pairs; prompts and continuations are not empty.
        batch_tokens: tokens of one forward, padding included.
        label: what the progress is called.

    Returns:
        One list an item, one `Scored` a continuation, in order.

    Raises:
        RequestError: a prompt or a continuation has no token.
    """
    refuse_empty([prompt for prompt, _ in items], "prompt")
    refuse_empty([text for _, continuations in items for text in continuations], "continuation")
    if not cache_holds(lm):
        split = [(prompt, [c]) for prompt, continuations in items for c in continuations]
        flat = iter(_score(lm, split, batch_tokens, label))
        return [[next(flat)[0] for _ in continuations] for _, continuations in items]
    return _score(lm, items, batch_tokens, label)


def _score(
    lm: LM, items: Sequence[tuple[list[int], Sequence[list[int]]]], batch_tokens: int, label: str
) -> list[list[Scored]]:
    found: list[list[Scored]] = [[Scored([], [])] * len(continuations) for _, continuations in items]
    longest = [max(range(len(c)), key=lambda j: len(c[j])) if c else -1 for _, c in items]
    rows = [prompt + (list(c[j][:-1]) if c else []) for (prompt, c), j in zip(items, longest, strict=True)]
    order = sorted((i for i, (_, c) in enumerate(items) if c), key=lambda i: (len(rows[i]), len(items[i][0]), i))
    # several longer continuations of a prompt go on from it as it stands in its batch
    lasts = {i: len(items[i][0]) - 1 for i in order if sum(len(text) > 1 for text in items[i][1]) <= 1}
    starts = shared_starts(lm, rows, lasts)
    with lm.inference(), progress.task(label, sum(len(rows[i]) for i in order)) as advance:
        for start, members in by_start(starts, order).items():
            past = cached_start(lm, start)
            for batch in batches(members, [len(row) - len(start) for row in rows], batch_tokens):
                _score_batch(lm, batch, items, longest, rows, found, len(start), past)
                advance(sum(len(rows[i]) for i in batch))
    return found


def _score_batch(
    lm: LM,
    batch: list[int],
    items: Sequence[tuple[list[int], Sequence[list[int]]]],
    longest: Sequence[int],
    rows: Sequence[list[int]],
    found: list[list[Scored]],
    start: int,
    past: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Score the continuations of some prompts, of which the first `start` tokens have been run."""
    prompts = [len(items[i][0]) - start for i in batch]
    # padding on the left would part rows from their start
    aligned = align([rows[i][start:] for i in batch], [0] * len(batch) if start else prompts, lm.device)
    last = [length - 1 for length in prompts] if start else [aligned.split - 1] * len(batch)
    at = [(r, last[r] + t) for r, i in enumerate(batch) for t in range(len(rows[i]) - start - prompts[r] + 1)]
    others = [(r, j) for r, i in enumerate(batch) for j in range(len(items[i][1])) if j != longest[i]]
    later = [(r, j) for r, j in others if len(items[batch[r]][1][j]) > 1]
    mask = F.pad(aligned.mask, (start, 0), value=1)
    cache = filled(expanded(past, len(batch))) if start else DynamicCache() if later else None
    with patch.prompts(lm.model, aligned.split - 1):
        logits = logits_at(lm, aligned.ids, mask, aligned.positions + start, at, cache)
    totals = logits.logsumexp(-1)
    best = logits.argmax(-1)
    where, columns, wanted, slots = 0, [], [], []
    firsts = []
    for r, i in enumerate(batch):
        firsts.append(where)
        for t, token in enumerate(items[i][1][longest[i]]):
            columns.append(where + t)
            wanted.append(token)
        slots.append((i, longest[i], len(items[i][1][longest[i]])))
        where += len(rows[i]) - start - prompts[r] + 1
    for r, j in others:
        columns.append(firsts[r])
        wanted.append(items[batch[r]][1][j][0])
        slots.append((batch[r], j, 1))
    _write(found, slots, logits, totals, best, columns, wanted)
    if later:
        assert cache is not None
        _score_later(lm, batch, items, later, aligned, cache, found)


def _score_later(
    lm: LM,
    batch: list[int],
    items: Sequence[tuple[list[int], Sequence[list[int]]]],
    later: list[tuple[int, int]],
    aligned: Aligned,
    cache: DynamicCache,
    found: list[list[Scored]],
) -> None:
    """Second pass: the rest of further continuations, against the prompts' keys and values."""
    texts = [items[batch[r]][1][j] for r, j in later]
    rest = align([text[:-1] for text in texts], [0] * len(texts), lm.device)
    which = torch.tensor([r for r, _ in later], device=lm.device)
    layers: Any = cache.layers
    past = filled([(x.keys[which, :, : aligned.split], x.values[which, :, : aligned.split]) for x in layers])
    patch.carry(lm.model, cache, past, which)
    mask = torch.cat([aligned.mask[which, : aligned.split], rest.mask], 1)
    lengths = aligned.mask[which, : aligned.split].sum(1, keepdim=True)
    at = [(r, t) for r, text in enumerate(texts) for t in range(len(text) - 1)]
    logits = logits_at(lm, rest.ids, mask, rest.positions + lengths, at, past)
    totals, best = logits.logsumexp(-1), logits.argmax(-1)
    wanted = [token for text in texts for token in text[1:]]
    slots = [(batch[r], j, len(items[batch[r]][1][j]) - 1) for r, j in later]
    _write(found, slots, logits, totals, best, list(range(len(wanted))), wanted)


def _write(
    found: list[list[Scored]],
    slots: Sequence[tuple[int, int, int]],
    logits: Tensor,
    totals: Tensor,
    best: Tensor,
    columns: Sequence[int],
    wanted: Sequence[int],
) -> None:
    """Append the scores of `wanted` tokens, read at `columns`, to the continuations they belong to."""
    column = torch.tensor(columns, device=logits.device)
    token = torch.tensor(wanted, device=logits.device)
    values = (logits[column, token] - totals[column]).tolist()
    hits = (best[column] == token).tolist()
    start = 0
    for item, which, length in slots:
        old = found[item][which]
        stop = start + length
        found[item][which] = Scored(old.logprobs + values[start:stop], old.hits + hits[start:stop])
        start = stop
