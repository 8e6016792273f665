"""What a model can be run by, found out once: entered at a block, against a cached prefix."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from retcon import hooks, patch
from retcon.forward.rows import align
from retcon.forward.running import call, entered_at, filled, logits_at
from retcon.lm import LM

__all__ = ["cache_holds", "entry_holds"]


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
        expected = logits_at(lm, whole.ids, whole.mask, whole.positions, at, None)
        split = whole.split
        cache = DynamicCache()
        call(lm, whole.ids[:, :split], whole.mask[:, :split], whole.positions[:, :split], cache)
        try:
            past = filled([(layer.keys, layer.values) for layer in _layers(cache)])
        except AttributeError:
            return False
        patch.carry(lm.model, cache, past, torch.arange(len(rows)))
        parts = whole.ids[:, split:], whole.mask, whole.positions[:, split:]
        found = logits_at(lm, *parts, [(r, c - split) for r, c in at], past)
    scale = float(expected.abs().max())
    return bool((found - expected).abs().max() <= _tolerance(lm) * scale)


def _layers(cache: DynamicCache) -> list[Any]:
    return list(cache.layers)


def _tolerance(lm: LM) -> float:
    return 1e-4 if lm.dtype in (torch.float32, torch.float64) else 3e-2
