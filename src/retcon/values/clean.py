"""The clean pass: every row once, as it is, and what of it the descent can go on from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, tokens
from retcon.errors import RequestError
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.precision import autocast, kernels
from retcon.values.chunks import Chunk, Past, cut, made
from retcon.values.config import Path, SearchConfig
from retcon.values.loss import shifted_logits
from retcon.values.precision import held
from retcon.values.rows import Row
from retcon.values.sites import first_block, joined, no_shift, site_modules

__all__ = ["Shared", "prepare", "shared_heads"]

_SHARED_TOKENS = 4
"""Common first tokens from which on it pays to run them once."""


@dataclass(slots=True)
class Shared:
    """First tokens that all rows of a template have in common, run once: keys and values, padded on the left."""

    length: dict[int, int]
    """Tokens shared, by template; a template without any is absent."""
    place: dict[int, int]
    """Row of `mask` and of `layers`, by template; the last row stands for no shared token."""
    mask: Int[Tensor, "templates width"]
    layers: Past


def prepare(
    lm: LM, rows: Sequence[Row], n: int, config: SearchConfig, chunk_tokens: int, path: Path
) -> tuple[Float[Tensor, "n *parts d"], list[Chunk]]:
    """Run every row once, clean: site activations h0 of the bare rows, and the chunks ready to be shifted."""
    whole = path == "whole"
    bare: dict[int, int] = {}
    for i, row in enumerate(rows):
        bare.setdefault(row.fact, i)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids) - rows[i].site, rows[i].site, i))
    shared = shared_heads(lm, rows) if path == "shared" else None
    base: Tensor | None = None
    chunks = []
    for batch in cut(order, rows, chunk_tokens, whole=whole):
        part = [rows[i] for i in batch]
        chunk, sites = _clean_whole(lm, part, config) if whole else _clean(lm, part, config, shared)
        if base is None:
            base = sites.new_zeros(n, *sites.shape[1:])
        for place, i in enumerate(batch):
            if bare[rows[i].fact] == i:
                base[rows[i].fact] = sites[place]
        chunks.append(chunk)
    if base is None:
        raise RequestError("there is no edit to search a target for")
    return base, chunks


def shared_heads(lm: LM, rows: Sequence[Row]) -> Shared | None:
    """Find and run the tokens that the rows of each template begin with; None where nothing is to be gained."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row.target:
            groups.setdefault(row.template, []).append(row)
    length = {}
    for template, members in groups.items():
        common = tokens.common_start(members)
        if len(members) > 1 and common >= _SHARED_TOKENS:
            length[template] = common
    if not length:
        return None
    heads = [groups[template][0].ids[:common] for template, common in length.items()]
    aligned = forward.align(heads, [len(head) for head in heads], lm.device)
    cache = DynamicCache()
    last = lm.arch.blocks[-1]
    with torch.no_grad(), hooks.record({last: lm.module(last)}, "output", stop_after=last), hooks.stoppable():
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions, cache)
    layers: list[Any] = list(cache.layers)
    return Shared(
        length,
        {template: i for i, template in enumerate(length)},
        F.pad(aligned.mask, (0, 0, 0, 1)),
        [tuple(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)) for x in (layer.keys, layer.values)) for layer in layers],  # type: ignore[misc]
    )


def _clean(
    lm: LM, rows: Sequence[Row], config: SearchConfig, shared: Shared | None
) -> tuple[Chunk, Float[Tensor, "rows *parts d"]]:
    """Run the rows of one chunk clean: whole up to the site's layer, and above it only what stands before the site."""
    head = [shared.length.get(row.template, 0) if shared and row.target else 0 for row in rows]
    aligned = forward.align(
        [row.ids[k:] for row, k in zip(rows, head, strict=True)],
        [row.site - k for row, k in zip(rows, head, strict=True)],
        lm.device,
    )
    split, mask, positions = aligned.split, aligned.mask, aligned.positions
    past: Past = []
    if shared is not None and any(head):
        which = torch.tensor(
            [shared.place[row.template] if k else len(shared.place) for row, k in zip(rows, head, strict=True)],
            device=lm.device,
        )
        past = [(keys[which], values[which]) for keys, values in shared.layers]
        mask = torch.cat([shared.mask[which], mask], 1)
        positions = positions + torch.tensor(head, device=lm.device)[:, None]
    above, sites = lm.arch.blocks[first_block(config) - 1], site_modules(lm, config)
    modules = {path: lm.module(path) for path in (above, *sites)}
    with torch.no_grad(), kernels(lm):
        with hooks.record(modules, "output", stop_after=sites[-1]) as seen, hooks.stoppable():
            forward.call(lm, aligned.ids, mask, positions, forward.filled(past) if past else None)
        states = seen[above]
        before = _run_before(lm, replace(aligned, mask=mask, positions=positions), states, past, config)
    kept = states[:, split:].clone() if split else states  # a view would hold on to all columns
    chunk = made(lm, rows, aligned.ids[:, split:], mask, positions[:, split:], 0, kept, before)
    chunk.clean = _clean_essence(lm, chunk, config)
    return chunk, _at_sites(seen, sites, len(rows), split)


def _at_sites(seen: dict[str, Tensor], sites: Sequence[str], rows: int, column: int) -> Float[Tensor, "rows *parts d"]:
    """What the site's modules gave at one column, in fp32 or better."""
    parts = [hooks.unflattened(seen[path], rows)[:, column] for path in sites]
    return joined([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts])


def _run_before(lm: LM, rows: Aligned, states: Tensor, past: Past, config: SearchConfig) -> Past:
    """Keys and values of all that stands before the site; layers that the search never runs get placeholders.

    Args:
        lm: the model.
        rows: the rows, with the mask and the positions that go with `past`.
        states: (rows, width, d), clean input of the first block that the search runs.
        past: keys and values of the tokens before `rows`, of every layer; empty where there are none.
        config: options.
    """
    first, last, split = first_block(config), lm.arch.blocks[-1], rows.split
    if not split:
        return forward.with_placeholders(past[first:], first) if past else []
    width = rows.mask.shape[1] - rows.width + split
    cache = forward.filled(past) if past else DynamicCache()
    with (
        autocast(lm, config.precision),
        forward.entered_at(lm, first, states[:, :split]),
        hooks.record({last: lm.module(last)}, "output", stop_after=last),
        hooks.stoppable(),
    ):
        forward.call(lm, rows.ids[:, :split], rows.mask[:, :width], rows.positions[:, :split], cache)
    layers: list[Any] = list(cache.layers)[first:]
    return forward.with_placeholders(
        [(held(lm, config, layer.keys), held(lm, config, layer.values)) for layer in layers], first
    )


def _clean_whole(lm: LM, rows: Sequence[Row], config: SearchConfig) -> tuple[Chunk, Float[Tensor, "rows *parts d"]]:
    """The chunk of a model without a fast path: whole rows, through the whole model."""
    aligned = forward.align([row.ids for row in rows], [row.site for row in rows], lm.device)
    chunk = made(lm, rows, aligned.ids, aligned.mask, aligned.positions, aligned.split, None, [])
    sites = site_modules(lm, config)
    modules = {path: lm.module(path) for path in sites}
    with torch.no_grad(), hooks.record(modules, "output", stop_after=sites[-1]) as seen, hooks.stoppable():
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
    chunk.clean = _clean_essence(lm, chunk, config)
    return chunk, _at_sites(seen, sites, len(rows), aligned.split)


def _clean_essence(lm: LM, chunk: Chunk, config: SearchConfig) -> Float[Tensor, "essence vocabulary"]:
    """Log-probabilities of the essence rows before anything is shifted."""
    if not len(chunk.essence):
        return chunk.clean
    keep = torch.zeros(len(chunk.fact), dtype=torch.bool, device=chunk.fact.device)
    keep[chunk.essence] = True
    chunk.clean = torch.zeros(len(chunk.essence), 1, device=chunk.fact.device)  # so that `kept` can cut it
    only = chunk.kept(keep)
    with torch.no_grad():
        return shifted_logits(lm, only, no_shift(lm, config, len(only.fact)), config).log_softmax(-1)
