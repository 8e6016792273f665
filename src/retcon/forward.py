"""Running a model over many rows: aligned batches, cached prefixes, logits only where they are read.

Only public arguments of the model's `forward` are used: ids, a two-dimensional mask, position ids, a cache. Rows of a
batch are aligned at one column, the *split*: what stands left of it is padded on the left, what stands right of it on
the right. So one cached prefix serves all that follows, and index differences are true distances (sliding windows,
ALiBi).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache

from retcon import hooks, patch, progress
from retcon.errors import RequestError
from retcon.lm import LM

__all__ = [
    "Aligned",
    "Scored",
    "align",
    "batches",
    "cache_holds",
    "call",
    "entered_at",
    "entry_holds",
    "expanded",
    "filled",
    "gathered_head",
    "greedy",
    "sample",
    "score",
    "with_placeholders",
]


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


def call(
    lm: LM,
    ids: Int[Tensor, "rows width"],
    mask: Int[Tensor, "rows past_and_width"],
    positions: Int[Tensor, "rows width"],
    cache: Cache | None = None,
) -> Any:
    """One forward of the whole model through its public arguments."""
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
    if cache is not None:
        arguments["past_key_values"] = cache
    if lm.arch.positions:
        arguments["position_ids"] = positions
    return lm.model(**arguments)


@contextmanager
def gathered_head(lm: LM, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Iterator[None]:
    """Hand the output head only the states at (row, column); the model then returns logits of shape (1, n, vocabulary).

    All that the model does around its head (scaling, soft caps) still happens.
    """
    with hooks.rewritten_input(lm.module(lm.arch.head), lambda states: states[rows, columns].unsqueeze(0)):
        yield


@contextmanager
def entered_at(lm: LM, first: int, states: Float[Tensor, "rows width d"]) -> Iterator[None]:
    """Run the model's own forward, but let block `first` be the first to compute, with `states` as its input.

    The blocks below pass on what they get, and the last of them hands out `states`; so masks, positions, final norm and
    head stay the model's own business.
    """
    extra = (None,) * (lm.arch.block_outputs - 1)
    tuples = lm.arch.block_outputs > 0

    def passed(states: Tensor) -> Any:
        return (states, *extra) if tuples else states

    def through(*args: Any, **kwargs: Any) -> Any:
        return passed(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for layer in range(first - 1):
            stack.enter_context(hooks.bypassed(lm.block(layer), through))
        stack.enter_context(hooks.bypassed(lm.block(first - 1), lambda *_args, **_kwargs: passed(states)))
        yield


def entry_holds(lm: LM) -> bool:
    """Whether a forward entered at a block gives what the whole one gives; probed once for each model."""
    if "entry_holds" not in lm.notes:
        lm.notes["entry_holds"] = lm.arch.n_layers > 1 and _probe_entry(lm)
    return bool(lm.notes["entry_holds"])


def _probe_entry(lm: LM) -> bool:
    rows = align([[5, 9, 7, 6, 8], [6, 7, 10]], [0, 0], lm.device)
    block = lm.arch.blocks[1]
    with lm.inference():
        with hooks.record({block: lm.module(block)}, "input") as seen:
            expected = call(lm, rows.ids, rows.mask, rows.positions).logits[rows.mask.bool()]
        try:
            with entered_at(lm, 1, seen[block]):
                found = call(lm, rows.ids, rows.mask, rows.positions).logits[rows.mask.bool()]
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, KeyError):
            return False
    return bool((found - expected).abs().max() <= _tolerance(lm) * expected.abs().max())


def _tolerance(lm: LM) -> float:
    return 1e-4 if lm.dtype in (torch.float32, torch.float64) else 3e-2


def filled(layers: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache that holds these keys and values, layer by layer; reading them copies nothing.

    It is made anew for each forward: a library cache stores what it is handed, so a used one would grow.
    """
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        if index < len(cache.layers):
            raise ValueError("a cache is filled once")
        cache.update(keys[..., :0, :], values[..., :0, :], index)
        layer: Any = cache.layers[index]
        layer.keys, layer.values = keys, values
    return cache


def with_placeholders(run: Sequence[tuple[Tensor, Tensor]], first: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of blocks `first` and up, with others below them of the right shape, and without memory."""
    keys, values = (x.new_zeros(1).expand(x.shape) for x in run[0])
    return [(keys, values)] * first + list(run)


_SHARED_TOKENS, _SAVED_TOKENS = 8, 128
"""First tokens by which rows that begin alike are found, and tokens saved from which on a run of their own pays."""
_CACHE_SHARE = 12
"""A batch that generates may hold this many times as many tokens in its cache as one forward runs."""


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
    _refuse_empty([prompt for prompt, _ in items], "prompt")
    _refuse_empty([text for _, continuations in items for text in continuations], "continuation")
    if not cache_holds(lm):
        split = [(prompt, [c]) for prompt, continuations in items for c in continuations]
        flat = iter(_score(lm, split, batch_tokens, label))
        return [[next(flat)[0] for _ in continuations] for _, continuations in items]
    return _score(lm, items, batch_tokens, label)


def _refuse_empty(rows: Sequence[Sequence[int]], name: str) -> None:
    """An empty row would be read at a column of padding."""
    if any(not row for row in rows):
        raise RequestError(f"a {name} has no token; write at least one character")


def _score(
    lm: LM, items: Sequence[tuple[list[int], Sequence[list[int]]]], batch_tokens: int, label: str
) -> list[list[Scored]]:
    found: list[list[Scored]] = [[Scored([], [])] * len(continuations) for _, continuations in items]
    longest = [max(range(len(c)), key=lambda j: len(c[j])) if c else -1 for _, c in items]
    rows = [prompt + (list(c[j][:-1]) if c else []) for (prompt, c), j in zip(items, longest, strict=True)]
    order = sorted((i for i, (_, c) in enumerate(items) if c), key=lambda i: (len(rows[i]), len(items[i][0]), i))
    starts = _starts(lm, items, rows, order)
    with lm.inference(), progress.task(label, sum(len(rows[i]) for i in order)) as advance:
        for start, members in _by_start(starts, order).items():
            past = _past_of(lm, start) if start else []
            for batch in batches(members, [len(row) - len(start) for row in rows], batch_tokens):
                _score_batch(lm, batch, items, longest, rows, found, len(start), past)
                advance(sum(len(rows[i]) for i in batch))
    return found


def _starts(
    lm: LM, items: Sequence[tuple[list[int], Sequence[list[int]]]], rows: Sequence[list[int]], order: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """What rows begin with that enough others begin with too, for those rows for which it is worth a run of its own.

    None where a memory is on the model, which decides by the whole prompt, or where several longer continuations are
    wanted of a prompt: they go on from it as it stands in its batch.
    """
    memories = any(not entry.folds for item in patch.active(lm.model) for entry in item.entries.values())
    if memories or not cache_holds(lm):
        return {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in order:
        prompt, continuations = items[i]
        if len(prompt) > _SHARED_TOKENS and sum(len(text) > 1 for text in continuations) <= 1:
            groups.setdefault(tuple(rows[i][:_SHARED_TOKENS]), []).append(i)
    found: dict[int, tuple[int, ...]] = {}
    for members in groups.values():
        first = rows[members[0]][: min(len(items[i][0]) for i in members) - 1]  # the last token is run with the row
        for i in members:
            same = (a == b for a, b in zip(first, rows[i], strict=False))
            first = first[: next((k for k, equal in enumerate(same) if not equal), len(first))]
        if (len(members) - 1) * len(first) >= _SAVED_TOKENS:
            found |= dict.fromkeys(members, tuple(first))
    return found


def _by_start(starts: Mapping[int, tuple[int, ...]], order: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
    """Rows by what they begin with, in order; those that begin as no others do come first."""
    found: dict[tuple[int, ...], list[int]] = {(): []}
    for i in order:
        found.setdefault(starts.get(i, ()), []).append(i)
    return found


def _past_of(lm: LM, start: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of some first tokens, of one row."""
    row, cache = align([start], [0], lm.device), DynamicCache()
    none = torch.zeros(1, dtype=torch.long, device=lm.device)
    with gathered_head(lm, none, none):
        call(lm, row.ids, row.mask, row.positions, cache)
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def expanded(past: Sequence[tuple[Tensor, Tensor]], rows: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of one row, for each of so many rows; nothing is copied."""
    return [(keys.expand(rows, *keys.shape[1:]), values.expand(rows, *values.shape[1:])) for keys, values in past]


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
        logits = _logits(lm, aligned.ids, mask, aligned.positions + start, at, cache)
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
    logits = _logits(lm, rest.ids, mask, rest.positions + lengths, at, past)
    totals, best = logits.logsumexp(-1), logits.argmax(-1)
    wanted = [token for text in texts for token in text[1:]]
    slots = [(batch[r], j, len(items[batch[r]][1][j]) - 1) for r, j in later]
    _write(found, slots, logits, totals, best, list(range(len(wanted))), wanted)


def _logits(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    at: Sequence[tuple[int, int]],
    cache: Cache | None,
) -> Float[Tensor, "n vocabulary"]:
    rows, columns = (torch.tensor(side, device=lm.device) for side in zip(*at, strict=True))
    with gathered_head(lm, rows, columns):
        logits: Tensor = call(lm, ids, mask, positions, cache).logits[0]
    return logits.float()


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


def cache_holds(lm: LM) -> bool:
    """Whether rows that run against a cached prefix give what whole rows give; probed once for each model.

    Recurrent layers and caches of their own shape fail this; they then run whole rows.
    """
    if "cache_holds" not in lm.notes:
        lm.notes["cache_holds"] = _probe_cache(lm)
    return bool(lm.notes["cache_holds"])


def _probe_cache(lm: LM) -> bool:
    rows = [[5, 9, 7, 6, 8, 11], [6, 7, 10, 5]]
    splits = [4, 2]
    whole = align(rows, splits, lm.device)
    with lm.inference(), patch.prompts(lm.model, whole.split - 1):
        at = [(r, whole.split + t) for r, row in enumerate(rows) for t in range(len(row) - splits[r])]
        expected = _logits(lm, whole.ids, whole.mask, whole.positions, at, None)
        split = whole.split
        cache = DynamicCache()
        call(lm, whole.ids[:, :split], whole.mask[:, :split], whole.positions[:, :split], cache)
        try:
            past = filled([(layer.keys, layer.values) for layer in _layers(cache)])
        except AttributeError:
            return False
        patch.carry(lm.model, cache, past, torch.arange(len(rows)))
        parts = whole.ids[:, split:], whole.mask, whole.positions[:, split:]
        found = _logits(lm, *parts, [(r, c - split) for r, c in at], past)
    scale = float(expected.abs().max())
    return bool((found - expected).abs().max() <= _tolerance(lm) * scale)


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)


def greedy(
    lm: LM,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    batch_tokens: int = 1536,
    label: str = "generating",
) -> list[list[int]]:
    """Continue each prompt greedily by up to `max_new_tokens` ids (the end token is not returned)."""
    config = _generation(lm, max_new_tokens, stop_at_eos, do_sample=False)
    return _generate(lm, prompts, config, stop_at_eos, batch_tokens, label)


def sample(
    lm: LM,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop_at_eos: bool = True,
    batch_tokens: int = 1536,
    label: str = "sampling",
) -> list[list[int]]:
    """Sample a continuation of each prompt; the same seed gives the same ids, and no global random state changes."""
    options = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
    config = _generation(lm, max_new_tokens, stop_at_eos, **options)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _generate(lm, prompts, config, stop_at_eos, batch_tokens, label)


def _generation(lm: LM, max_new_tokens: int, stop_at_eos: bool, **options: Any) -> GenerationConfig:
    ends = _end_ids(lm)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends if stop_at_eos and ends else None,
        pad_token_id=ends[0] if ends else 0,
        repetition_penalty=1.0,
        num_beams=1,
        **options,
    )


def _end_ids(lm: LM) -> list[int]:
    own: Any = getattr(lm.model.generation_config, "eos_token_id", None)
    if own is None:
        own = lm.tokenizer.eos_token_id
    return [] if own is None else [own] if isinstance(own, int) else list(own)


def _generate(
    lm: LM,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    stop_at_eos: bool,
    batch_tokens: int,
    label: str,
) -> list[list[int]]:
    _refuse_empty(prompts, "prompt")
    ends = set(_end_ids(lm)) if stop_at_eos else set()
    new = int(config.max_new_tokens or 0)
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    # the prompts' pass is bound by their tokens; after it a step runs one token a row, and what counts is the cache
    lengths = [max(len(prompt), -(-(len(prompt) + new) // _CACHE_SHARE)) for prompt in prompts]
    model: Any = lm.model
    with ExitStack() as stack:
        stack.enter_context(lm.inference())
        stack.enter_context(_own_generation_config(model, config))
        advance = stack.enter_context(progress.task(label, len(prompts)))
        for batch in batches(order, lengths, batch_tokens):
            rows = [prompts[i] for i in batch]
            aligned = align(rows, [len(row) for row in rows], lm.device)
            with patch.prompts(model, aligned.width - 1):
                out = model.generate(input_ids=aligned.ids, attention_mask=aligned.mask)
            for i, row in zip(batch, out[:, aligned.width :].tolist(), strict=True):
                stop = next((t for t, token in enumerate(row) if token in ends), len(row))
                found[i] = row[:stop]
            advance(len(batch))
    return found


@contextmanager
def _own_generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate by `config` alone: transformers fills what a config leaves open from the model's own."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
