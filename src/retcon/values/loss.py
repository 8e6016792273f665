"""The loss and its gradient at any shift: one forward and one backward of what stands above the site."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

from retcon import forward, hooks
from retcon.lm import LM
from retcon.precision import autocast, kernels, loss_scale
from retcon.values.chunks import Chunk
from retcon.values.config import SearchConfig
from retcon.values.sites import first_block, parted, site_modules

__all__ = ["Evaluation", "evaluate", "shifted_logits"]


@dataclass(slots=True)
class Evaluation:
    """The model's part of J, for each of n facts."""

    value: Float[Tensor, " n"]
    """The weighted sum of the two terms below."""
    gradient: Float[Tensor, "n *parts d"]
    """Its gradient."""
    nll: Float[Tensor, " n"]
    """Negative log-likelihood of the target, whatever its weight."""
    drift: Float[Tensor, " n"]
    """The essence term, kl * KL."""
    least: Float[Tensor, " n"]
    """The least probability of a target token in any row."""
    hit: Bool[Tensor, " n"]
    """Whether every target token of every row is the argmax; only looked at where the search relaxes."""


def evaluate(
    lm: LM,
    chunks: Sequence[Chunk],
    delta: Float[Tensor, "n *parts d"],
    config: SearchConfig,
    emphasis: Float[Tensor, " n"] | None = None,
) -> Evaluation:
    """emphasis * NLL + kl * KL of each fact and its gradient; facts that no chunk holds come out as zero."""
    drift, gradient = delta.new_zeros(len(delta)), torch.zeros_like(delta)
    nll, least = torch.zeros_like(drift), torch.ones_like(drift)
    hit = torch.ones_like(drift, dtype=torch.bool)
    emphasis = torch.ones_like(drift) if emphasis is None else emphasis
    scale = loss_scale(lm)
    for chunk in chunks:
        shift = delta[chunk.fact].detach().requires_grad_()
        n, owner = len(chunk.token), chunk.fact[chunk.target_at[0]]
        with torch.enable_grad():
            logits = shifted_logits(lm, chunk, shift, config)
            miss = F.cross_entropy(logits[:n], chunk.token, reduction="none") if n else logits[:0, 0]
            total = (miss * (chunk.weight * emphasis[owner])).sum()
            if len(chunk.essence):
                now = logits[n:].log_softmax(-1)
                moved = config.kl * (now.exp() * (now - chunk.clean)).sum(-1)
                total = total + moved.sum()
            (slope,) = torch.autograd.grad(scale * total, shift)
        gradient.index_add_(0, chunk.fact, slope.to(gradient.dtype) / scale)
        if n:
            miss = miss.detach().to(nll.dtype)
            nll.index_add_(0, owner, miss * chunk.weight)
            least.scatter_reduce_(0, owner, (-miss).exp(), "amin")
            if config.relax:
                hit[owner[logits[:n].argmax(-1) != chunk.token]] = False
        if len(chunk.essence):
            drift.index_add_(0, chunk.fact[chunk.essence], moved.detach().to(drift.dtype))
    return Evaluation(drift + emphasis * nll, gradient, nll, drift, least, hit)


def shifted_logits(
    lm: LM, chunk: Chunk, shift: Float[Tensor, "rows *parts d"], config: SearchConfig
) -> Float[Tensor, "targets_and_essence vocabulary"]:
    """Logits at all places the loss reads, with the site of each row shifted."""
    rows = torch.cat([chunk.target_at[0], chunk.essence])
    columns = torch.cat([chunk.target_at[1], torch.full_like(chunk.essence, chunk.column)])
    parts = zip(site_modules(lm, config), parted(shift), strict=True)
    changes = {path: partial(_shifted, chunk=chunk, shift=part) for path, part in parts}
    with ExitStack() as stack:
        if chunk.states is not None:
            first = first_block(config)
            below = changes.pop(lm.arch.blocks[first - 1], None)  # a block's output: what the first that runs gets
            states = below(chunk.states) if below else chunk.states
            stack.enter_context(forward.entered_at(lm, first, states))
        for path, change in changes.items():
            stack.enter_context(hooks.rewritten(lm.module(path), change))
        stack.enter_context(forward.gathered_head(lm, rows, columns))
        stack.enter_context(autocast(lm, config.precision))
        stack.enter_context(kernels(lm))
        cache = forward.filled(chunk.past) if chunk.past else None
        logits: Tensor = forward.call(lm, chunk.ids, chunk.mask, chunk.positions, cache).logits[0]
    return logits if logits.dtype == torch.float64 else logits.float()


def _shifted(states: Tensor, *, chunk: Chunk, shift: Float[Tensor, "rows d"]) -> Tensor:
    """States (rows, width, d), or flattened, with `shift` added at the site."""
    if states.ndim == 2:  # OPT flattens its rows around the MLP
        unflattened = hooks.unflattened(states, len(chunk.fact))
        return _shifted(unflattened, chunk=chunk, shift=shift).flatten(0, 1)
    left, site, right = states.split([chunk.column, 1, states.shape[1] - chunk.column - 1], 1)
    return torch.cat([left, site + shift[:, None].to(states.dtype), right], 1)
