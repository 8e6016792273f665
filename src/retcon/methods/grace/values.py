"""The values of a codebook: what a projection must give at a prompt for the model to answer as wanted.

Values of different keys have nothing to do with one another, as each row meets its own key alone; so those of many
edits are sought in one descent, which gives what each would get by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import forward
from retcon.arch import frozen
from retcon.lm import LM
from retcon.methods.grace.rows import BATCH_TOKENS, Batch, Question, Site, batch_of, misses
from retcon.precision import loss_scale

__all__ = ["Trained", "descend", "measured"]


@dataclass(slots=True)
class Trained:
    """Values and how well they do."""

    values: Float[Tensor, "n d_out"]
    loss: Float[Tensor, " n"]
    """Mean cross-entropy of the answer's tokens, in nats."""
    held: Bool[Tensor, " n"]
    """Whether every one of them is the argmax."""
    evaluations: Int[Tensor, " n"]


def descend(
    lm: LM, site: Site, asked: Sequence[Question], start: Float[Tensor, "n d_out"], *, batch_tokens: int = BATCH_TOKENS
) -> Trained:
    """Seek the value of each question from its start by Adam; the best one seen is kept.

    The loss is the mean cross-entropy of the answer's tokens with the replacement active. A question is done once it is
    below `site.stop` and every token is the argmax.

    Args:
        lm: the model, with any patch already on.
        site: where and how.
        asked: the questions, each with a key of its own.
        start: the values to begin with.
        batch_tokens: tokens of one forward, padding included.
    """
    found = _unknown(start)
    with frozen(lm.model):
        for index in _batches(asked, batch_tokens):
            _descend(lm, site, batch_of(lm, site, [asked[i] for i in index]), torch.tensor(index), found)
    return found


def measured(lm: LM, site: Site, asked: Sequence[Question], values: Float[Tensor, "n d_out"]) -> Trained:
    """How well values do that are given."""
    found = _unknown(values)
    with frozen(lm.model), torch.no_grad():
        for index in _batches(asked, BATCH_TOKENS):
            batch = batch_of(lm, site, [asked[i] for i in index])
            loss, held = _losses(batch, len(index), *misses(lm, site, batch, values[index].to(lm.device)))
            found.loss[index], found.held[index] = loss.cpu().float(), held.cpu()
    return found


def _batches(asked: Sequence[Question], batch_tokens: int) -> list[list[int]]:
    lengths = [len(item.row) for item in asked]
    order = sorted(range(len(asked)), key=lambda i: (lengths[i], i))
    return list(forward.batches(order, lengths, batch_tokens))


def _unknown(start: Tensor) -> Trained:
    n = len(start)
    loss, held = torch.full((n,), torch.inf), torch.zeros(n, dtype=torch.bool)
    return Trained(start.detach().cpu().float().clone(), loss, held, torch.zeros(n, dtype=torch.long))


def _descend(lm: LM, site: Site, batch: Batch, index: Int[Tensor, " k"], found: Trained) -> None:
    """Seek the values of one batch, and enter them in `found`; rows that are done are left out once they are many."""
    wide = torch.promote_types(lm.dtype, torch.float32)
    value = found.values[index].to(lm.device, wide).requires_grad_()
    adam = torch.optim.Adam([value], lr=site.lr)
    active, scale = torch.ones(len(index), dtype=torch.bool, device=lm.device), loss_scale(lm)
    for step in range(max(site.steps, 1)):
        with torch.enable_grad():
            miss, right = misses(lm, site, batch, value)
            loss, held = _losses(batch, len(index), miss, right)
            total = scale * loss[active].sum()
        _enter(found, index, active, value, loss, held)
        active = active & ~((loss < site.stop) & held)
        if step == site.steps - 1 or not bool(active.any()):
            return
        (slope,) = torch.autograd.grad(total, value)
        value.grad = slope / scale
        adam.step()
        keep = active[batch.owner]
        if int(keep.sum()) <= 0.75 * len(keep):
            batch = batch.kept(keep)


def _enter(found: Trained, index: Int[Tensor, " k"], active: Tensor, value: Tensor, loss: Tensor, held: Tensor) -> None:
    """Keep the values that do better than what is known: an answer that holds before one that does not."""
    on = active.cpu()
    place, loss, held = index[on], loss.detach().cpu().float()[on], held.cpu()[on]
    found.evaluations[place] += 1
    better = (held & ~found.held[place]) | ((held == found.held[place]) & (loss < found.loss[place]))
    place, loss, held = place[better], loss[better], held[better]
    found.values[place], found.loss[place], found.held[place] = value.detach().cpu().float()[on][better], loss, held


def _losses(
    batch: Batch, n: int, miss: Float[Tensor, " targets"], right: Bool[Tensor, " targets"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Mean loss of each value's answer, and whether all of it is right; of values without a row, zero and true."""
    owner = batch.owner[batch.at[0]]
    share = 1 / torch.bincount(owner, minlength=n).clamp_min(1).to(miss)
    wrong = torch.zeros(n, device=miss.device, dtype=torch.long).index_add(0, owner, (~right).long())
    return miss.new_zeros(n).index_add(0, owner, miss * share[owner]), wrong == 0
