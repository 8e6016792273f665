"""One forward of the whole model, by its public arguments: entered late, read at few places, over cached prefixes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from retcon import hooks
from retcon.lm import LM

__all__ = ["call", "entered_at", "expanded", "filled", "gathered_head", "logits_at", "with_placeholders"]


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


def logits_at(
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


def expanded(past: Sequence[tuple[Tensor, Tensor]], rows: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of one row, for each of so many rows; nothing is copied."""
    return [(keys.expand(rows, *keys.shape[1:]), values.expand(rows, *values.shape[1:])) for keys, values in past]
