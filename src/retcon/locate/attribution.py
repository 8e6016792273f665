"""Which neurons a fact's answer hangs on: gradient x activation, and integrated gradients.

A neuron n of layer l is one coordinate of k, the input of the MLP's output projection, at the site: the subject's last
token. With F the log-probability of the answer, summed over its tokens,

    gradient:    s_n = k_n dF/dk_n                                      at the activations as they are
    integrated:  s_n = k_n (1/m) sum_{q=1..m} dF/dk_n at (q/m) k        k replaced at the site of layer l only

(integrated gradients: arXiv 1703.01365; over FFN neurons, as knowledge neurons: arXiv 2104.08696). The scores of a
layer sum to F(k) - F(0), up to O(1/m), in the integrated form. The gradient form takes one forward and one backward
for all layers of a batch of facts; the integrated one m for each layer, through captum's `IntegratedGradients` on the
activation.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, progress, tokens
from retcon.arch import frozen
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.locate.facts import Answer, Fact, facts_of
from retcon.precision import kernels, loss_scale
from retcon.requests import Edit

__all__ = ["Attributions", "How", "attribute", "top_neurons"]

How = Literal["gradient", "integrated"]


@dataclass(frozen=True, slots=True)
class Attributions:
    """What each neuron of the layers looked at contributes to the answer of each of N facts."""

    scores: dict[int, Float[Tensor, "N d_k"]]
    """Layer -> scores in nats, signed: positive where the neuron speaks for the answer."""
    logprob: Float[Tensor, " N"]
    """F at the activations as they are: log-probability of the answer; of a contrast, the difference."""
    answers: tuple[str, ...]
    """The answers looked at."""
    against: tuple[str, ...]
    """The answers they are set against, each empty where there is no contrast."""
    how: How
    """Which form the scores have."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers looked at, in the order asked for."""
        return tuple(self.scores)

    def mass(self) -> Float[Tensor, "N layers"]:
        """How much of the answer hangs on each layer: a_l = sum_n |s_n|, in nats."""
        return torch.stack([scores.abs().sum(1) for scores in self.scores.values()], 1)

    def top(self, layer: int, share: float) -> Bool[Tensor, "N d_k"]:
        """The neurons that hold `share` of a layer's mass, fact by fact: see `top_neurons`."""
        return top_neurons(self.scores[layer], share)


def top_neurons(scores: Float[Tensor, "... d_k"], share: float) -> Bool[Tensor, "... d_k"]:
    """The largest |scores| that together stay within `share` of their sum, at least one in each row.

    With c the cumulative sum of |scores| in descending order and T its total, the first max(1, #{i: c_i <= share T})
    are chosen. A share of 1 chooses all, without a comparison: rounding would drop some. Sums are in fp64.

    >>> top_neurons(torch.tensor([[4.0, -3.0, 2.0, 1.0]]), 0.7).tolist()
    [[True, True, False, False]]
    """
    if share >= 1:
        return torch.ones_like(scores, dtype=torch.bool)
    ordered, order = scores.abs().double().sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    kept = (cumulative <= share * cumulative[..., -1:]) & (ordered > 0)  # a row of zeros would be kept whole
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def attribute(
    lm: LM,
    edits: Sequence[Edit],
    layers: Sequence[int],
    *,
    answer: Answer = "old",
    how: How = "gradient",
    steps: int = 20,
    batch_tokens: int = 512,
) -> Attributions:
    """Score every neuron of `layers` at the subject's last token of each fact.

    An edit without a subject is read at the last token of its prompt.

    Args:
        lm: the model, with any patch already on.
        edits: the facts.
        layers: the layers to look at.
        answer: whose log-probability: `old` (the model's own greedy answer where none is given), `new`, `contrast` (old
            minus new), or `greedy`.
        how: `gradient` (one forward and backward for all layers) or `integrated` (`steps` a layer; needs captum).
        steps: m, the points of the integral.
        batch_tokens: tokens of one forward; it bounds memory.

    Raises:
        RetconError: there is no such layer, or captum is missing.
        RequestError: an answer has no token, or a subject is not found in its prompt.
    """
    _check(lm, layers, how, steps)
    if not edits:
        raise RequestError("there is no fact to look at; give at least one")
    facts = facts_of(lm, edits, answer)
    rows = _rows(facts)
    wide = torch.promote_types(lm.dtype, torch.float32)
    scores: dict[int, Tensor] = {}
    logprob = torch.zeros(len(edits), dtype=wide, device=lm.device)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rows[i].site, i))
    with frozen(lm.model), progress.task("attribution", len(rows)) as advance:
        for batch in forward.batches(order, [len(row.ids) for row in rows], batch_tokens):
            chunk = _chunk(lm, [rows[i] for i in batch])
            if how == "gradient":
                found, value = _by_gradient(lm, chunk, layers)
            else:
                found, value = _integrated(lm, chunk, layers, steps, batch_tokens)
            for layer, part in found.items():
                if layer not in scores:
                    scores[layer] = torch.zeros(len(edits), part.shape[1], dtype=wide, device=lm.device)
                scores[layer].index_add_(0, chunk.fact, part.to(wide) * chunk.sign[:, None])
            logprob.index_add_(0, chunk.fact, value.to(wide) * chunk.sign)
            advance(len(batch))
    texts = [(tokens.decode(lm, fact.answer).strip(), tokens.decode(lm, fact.against).strip()) for fact in facts]
    said, against = zip(*texts, strict=True)
    return Attributions({layer: scores[layer] for layer in layers}, logprob, said, against, how)


def _check(lm: LM, layers: Sequence[int], how: How, steps: int) -> None:
    last = lm.arch.n_layers - 1
    wrong = next((layer for layer in layers if not 0 <= layer <= last), None)
    if not layers:
        raise RetconError("there is no layer to look at; name at least one")
    if wrong is not None:
        raise RetconError(f"there is no layer {wrong}; this model's layers are 0 to {last}")
    if how == "integrated" and steps < 2:
        raise RetconError(f"{steps} {'step is' if steps == 1 else 'steps are'} no integral; take at least 2")


# ----------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt with one of its answers, all ids but the last."""

    ids: list[int]
    site: int
    target: list[int]
    fact: int
    sign: float


@dataclass(slots=True)
class _Chunk:
    """Rows that run together, from the site on, against the keys and values of what stands before it."""

    ids: Int[Tensor, "rows width"]
    mask: Int[Tensor, "rows past_and_width"]
    positions: Int[Tensor, "rows width"]
    column: int
    """Column of the site in `ids`; 0 where something before it is kept in `past`."""
    past: list[tuple[Tensor, Tensor]]
    target: Int[Tensor, "rows targets"]
    """The answer's ids, padded on the right."""
    asked: Bool[Tensor, "rows targets"]
    """Which of them are there."""
    predictor: Int[Tensor, "rows targets"]
    """Columns of `ids` whose logits predict them."""
    fact: Int[Tensor, " rows"]
    sign: Float[Tensor, " rows"]

    def __len__(self) -> int:
        return self.ids.shape[0]


def _rows(facts: Sequence[Fact]) -> list[_Row]:
    rows = []
    for i, fact in enumerate(facts):
        for target, sign in ((fact.answer, 1.0), (fact.against, -1.0)):
            if target:
                rows.append(_Row(fact.ids + target[:-1], fact.site, target, i, sign))
    return rows


def _chunk(lm: LM, rows: Sequence[_Row]) -> _Chunk:
    """Lay rows out with their sites in one column, and run what stands before it, where the model lets us."""
    aligned = forward.align([row.ids for row in rows], [row.site for row in rows], lm.device)
    split = aligned.split if forward.cache_holds(lm) else 0
    past: list[tuple[Tensor, Tensor]] = []
    if split:
        cache, last = DynamicCache(), lm.arch.blocks[-1]
        parts = aligned.ids[:, :split], aligned.mask[:, :split], aligned.positions[:, :split]
        with torch.no_grad(), hooks.record({last: lm.module(last)}, "output", stop_after=last), hooks.stoppable():
            forward.call(lm, *parts, cache)
        layers: list[Any] = list(cache.layers)
        past = [(layer.keys, layer.values) for layer in layers]
    most = max(len(row.target) for row in rows)
    first = [aligned.split - split + len(row.ids) - row.site - len(row.target) for row in rows]

    def long(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=lm.device)

    target = long([row.target + [0] * (most - len(row.target)) for row in rows])
    lengths = long([len(row.target) for row in rows])
    steps = torch.arange(most, device=lm.device)
    return _Chunk(
        ids=aligned.ids[:, split:],
        mask=aligned.mask,
        positions=aligned.positions[:, split:],
        column=aligned.split - split,
        past=past,
        target=target,
        asked=steps < lengths[:, None],
        predictor=long(first)[:, None] + steps,
        fact=long([row.fact for row in rows]),
        sign=torch.tensor([row.sign for row in rows], device=lm.device),
    )


def _logprobs(lm: LM, chunk: _Chunk, which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """F of the rows `which` (repeats allowed), run with whatever hooks are on."""
    row, place = chunk.asked[which].nonzero(as_tuple=True)
    past = [(keys[which], values[which]) for keys, values in chunk.past]
    with kernels(lm), forward.gathered_head(lm, row, chunk.predictor[which][row, place]):
        cache = forward.filled(past) if past else None
        logits: Tensor = forward.call(lm, chunk.ids[which], chunk.mask[which], chunk.positions[which], cache).logits[0]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logprobs = wide.log_softmax(-1).gather(1, chunk.target[which][row, place][:, None])[:, 0]
    return torch.zeros_like(logprobs[:1]).expand(len(which)).index_add(0, row, logprobs)


def _with_site(states: Tensor, rows: int, column: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """States of the shape a projection gets them in, those at the site passed through `change`."""
    whole = hooks.unflattened(states, rows)
    left, site, right = whole.split([column, 1, whole.shape[1] - column - 1], 1)
    return torch.cat([left, change(site[:, 0])[:, None].to(states.dtype), right], 1).view(states.shape)


# ------------------------------------------------------------------------------------------------ the two forms


def _by_gradient(lm: LM, chunk: _Chunk, layers: Sequence[int]) -> tuple[dict[int, Tensor], Float[Tensor, " rows"]]:
    """k dF/dk at the site for all layers by one forward and one backward, and F."""
    keys: dict[int, Tensor] = {}
    shifts: dict[int, Tensor] = {}

    def shifted(layer: int, key: Tensor) -> Tensor:
        keys[layer] = key.detach()
        shifts[layer] = torch.zeros_like(key).requires_grad_()  # dF/dshift is dF/dk at the site, and nothing else
        return key + shifts[layer]

    with torch.enable_grad(), ExitStack() as stack:
        for layer in layers:
            change = partial(_with_site, rows=len(chunk), column=chunk.column, change=partial(shifted, layer))
            stack.enter_context(hooks.rewritten_input(lm.projection(layer), change))
        value, scale = _logprobs(lm, chunk, torch.arange(len(chunk), device=lm.device)), loss_scale(lm)
        slopes = torch.autograd.grad(scale * value.sum(), [shifts[layer] for layer in layers])
    wide = torch.promote_types(lm.dtype, torch.float32)
    products = (keys[layer].to(wide) * (slope.to(wide) / scale) for layer, slope in zip(layers, slopes, strict=True))
    return dict(zip(layers, products, strict=True)), value.detach()


def _integrated(
    lm: LM, chunk: _Chunk, layers: Sequence[int], steps: int, batch_tokens: int
) -> tuple[dict[int, Tensor], Float[Tensor, " rows"]]:
    """Integrated gradients of each layer, only the blocks from there up being run, and F."""
    method = _captum()
    everything = torch.arange(len(chunk), device=lm.device)
    paths = {path: lm.module(path) for layer in layers for path in (lm.arch.blocks[layer], lm.arch.mlp_out[layer])}
    with torch.no_grad(), hooks.record(paths, "input") as seen:
        value = _logprobs(lm, chunk, everything)
    enters = forward.entry_holds(lm)
    found = {}
    for layer in layers:
        states = seen[lm.arch.blocks[layer]] if enters and layer > 0 else None
        keys = hooks.unflattened(seen[lm.arch.mlp_out[layer]], len(chunk))[:, chunk.column]
        run = method(partial(_value_at, lm, chunk, layer, states))
        rows = max(len(chunk), batch_tokens // chunk.ids.shape[1])
        # the right-hand sum is the equation above; captum's own rules place their points elsewhere
        scores = run.attribute(
            keys, 0, additional_forward_args=(everything,), n_steps=steps, method="riemann_right",
            internal_batch_size=rows,
        )  # fmt: skip
        found[layer] = scores.detach()
    return found, value


def _value_at(
    lm: LM,
    chunk: _Chunk,
    layer: int,
    states: Float[Tensor, "rows width d"] | None,
    keys: Float[Tensor, "n d_k"],
    which: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """F of the rows `which` with `keys` in the place of k in one layer; blocks below run only where they must."""
    change = partial(_with_site, rows=len(which), column=chunk.column, change=lambda _key: keys)
    with ExitStack() as stack:
        if states is not None:
            stack.enter_context(forward.entered_at(lm, layer, states[which]))
        stack.enter_context(hooks.rewritten_input(lm.projection(layer), change))
        return _logprobs(lm, chunk, which)


def _captum() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise RetconError("integrated gradients need captum: run `pip install 'retcon-lm[explain]'`") from None
    return IntegratedGradients
