"""The descent: all shifts at once, each with its own clamp, its own stop and its own momentum."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import memory
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.values.chunks import Chunk, drop_finished
from retcon.values.clean import prepare
from retcon.values.config import Found, FromBase, Penalty, SearchConfig, Step
from retcon.values.loss import Evaluation, evaluate
from retcon.values.paths import fast_path
from retcon.values.precision import half_weights
from retcon.values.rows import rows_of
from retcon.values.ties import Ties

__all__ = ["search"]

_TRIM_EVERY = 3
"""Evaluations between two times that freed memory is handed back."""
_RELAXED, _ENOUGH = 0.1, 0.01
"""PMET's weight of the likelihood once the target is the argmax, and the weighted KL at which a fact is then done."""


def search(
    lm: LM,
    edits: Sequence[Edit],
    config: SearchConfig,
    templates: Sequence[str] = ("",),
    *,
    penalty: Penalty | None = None,
    start: FromBase | None = None,
    radius: FromBase | None = None,
    numbers: Sequence[int] | None = None,
    chunk_tokens: int = 192,
    fast: bool | None = None,
    advance: Callable[[float], None] = lambda _done: None,
) -> Found:
    """Search the targets of all `edits` together.

    Args:
        lm: the model, with any patch already on.
        edits: the facts; they do not influence each other unless a penalty makes them, or they are tied. Those of one
            tie have one shift, added to each one's own h0: it goes down the mean of their losses, in steps and within
            a radius that are the mean of theirs, and is done when all of them are.
        config: options.
        templates: texts put before each prompt; the first must be "", the bare prompt.
        penalty: an extra loss for each fact.
        start: from the clean activations h0 (N, *parts, d) to the first shifts, of the same shape; by default zero.
            Shifts that are too long are shortened to the radius first.
        radius: from h0 to the longest shift of each fact (N, *parts), in the units of h0; by default `clamp` * |h0|.
        numbers: indices of the edits in the caller's list, for the penalty.
        chunk_tokens: tokens run in one forward; it bounds memory.
        fast: force (`cached`) or forbid the fast path; by default the fastest one that a probe found right.
        advance: told how many facts have just been finished.

    Raises:
        RequestError: an edit has no subject, or a target no token.
        UnsupportedModel: the site is not there in this family.
    """
    if not templates or templates[0] != "":
        raise ValueError('the first template is "", the bare prompt')
    path = fast_path(lm, config) if fast is None else ("cached" if fast else "whole")
    rows = [row for i, edit in enumerate(edits) for row in rows_of(lm, edit, templates, i, essence=config.kl > 0)]
    with frozen(lm.model):
        base, chunks = prepare(lm, rows, len(edits), config, chunk_tokens, path)
        limit = config.clamp * base.norm(dim=-1) if radius is None else _asked("radius", radius, base, base[..., 0])
        delta = torch.zeros_like(base)
        if start is not None:
            delta = _asked("start", start, base, base)
        ties = Ties.of(edits, base.device)
        if ties is not None:
            limit, delta = ties.mean(limit), ties.mean(delta)
        if start is not None:
            delta = _within(delta, limit)
        index = torch.arange(len(edits)) if numbers is None else torch.tensor(list(numbers))
        memory.give_back()
        with half_weights(lm, config):
            begun = _begun(base, delta)
            return _descend(lm, chunks, begun, limit, config, penalty, index.to(base.device), ties, advance)


def _asked(name: str, answer: FromBase, base: Tensor, like: Tensor) -> Tensor:
    """What the caller wants of each fact, refused where its shape is another than that of `like`."""
    given = answer(base.clone()).detach().to(base)
    if given.shape != like.shape:
        raise ValueError(f"{name} gave a tensor of shape {tuple(given.shape)}, where {tuple(like.shape)} is needed")
    return given


def _begun(base: Float[Tensor, "n *parts d"], delta: Float[Tensor, "n *parts d"]) -> Found:
    """A result before anything was found."""
    loss = base.new_full((len(base),), torch.nan)
    evaluations = torch.zeros(len(base), dtype=torch.long, device=base.device)
    return Found(base, delta, loss, evaluations, torch.zeros_like(loss))


def _descend(
    lm: LM,
    chunks: list[Chunk],
    found: Found,
    radius: Float[Tensor, "n *parts"],
    config: SearchConfig,
    penalty: Penalty | None,
    numbers: Int[Tensor, " n"],
    ties: Ties | None,
    advance: Callable[[float], None],
) -> Found:
    """Descend on all shifts at once; a fact that has stopped keeps its shift and leaves the chunks."""
    active = torch.ones_like(found.evaluations, dtype=torch.bool)
    emphasis = torch.ones_like(found.loss)
    steps = _Steps(found.base, config, ties)
    for number in range(max(config.steps - 1, 1)):
        seen = evaluate(lm, chunks, found.delta, config, emphasis)
        value, gradient = _decayed(seen, found, config)
        if penalty is not None:
            more, slope = _penalised(penalty, numbers, found, active, number)
            value, gradient = value + more, gradient + slope
        if ties is not None:
            value, gradient, seen = ties.mean(value), ties.mean(gradient), ties.together(seen)
        found.loss = torch.where(active, value, found.loss)
        found.probability = torch.where(active, (-seen.nll).exp(), found.probability)
        found.evaluations += active
        if config.relax:
            emphasis = torch.ones_like(emphasis).masked_fill(seen.hit, _RELAXED)
        finished = active & _done(value, seen, config, number)
        active = active & ~finished
        advance(float(finished.sum()))
        if not active.any() or config.steps <= 1:
            break
        moved = _within(found.delta + steps.next(gradient, number), radius)
        found.delta = torch.where(active.view(-1, *[1] * (moved.ndim - 1)), moved, found.delta)
        drop_finished(chunks, active)
        if number % _TRIM_EVERY == 0:
            memory.give_back()
    advance(float(active.sum()))
    return found


def _decayed(
    seen: Evaluation, found: Found, config: SearchConfig
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *parts d"]]:
    """Loss and gradient with the weight decay of every part."""
    norm, scale = found.delta.norm(dim=-1), found.base.norm(dim=-1).square()
    decay = config.weight_decay * norm / scale
    slope = config.weight_decay * (found.delta / (norm * scale).clamp_min(1e-30)[..., None])
    return seen.value + decay.view(len(decay), -1).sum(1), seen.gradient + slope


def _done(value: Tensor, seen: Evaluation, config: SearchConfig, number: int) -> Bool[Tensor, " n"]:
    """Which facts have met a stop."""
    if number < config.earliest_stop:
        return torch.zeros_like(seen.hit)
    done = value < config.stop
    if config.stop_probability is not None:
        done |= seen.least >= config.stop_probability
    if config.relax:
        done |= seen.hit & (seen.drift <= _ENOUGH)
    return done


def _within(delta: Float[Tensor, "n *parts d"], radius: Float[Tensor, "n *parts"]) -> Float[Tensor, "n *parts d"]:
    """Shifts no longer than their radius."""
    share: Tensor = (radius / delta.norm(dim=-1).clamp_min(1e-30)).clamp_max(1.0)
    return delta * share[..., None]


class _Steps:
    """The optimizer's memory: one entry of everything for each fact, and for `normalised` for each part of it."""

    def __init__(self, base: Float[Tensor, "n *parts d"], config: SearchConfig, ties: Ties | None) -> None:
        self.config = config
        self.length: Tensor = config.lr * base.norm(dim=-1, keepdim=True)
        if ties is not None:
            self.length = ties.mean(self.length)
        self.first = torch.zeros_like(base)
        self.second = torch.zeros_like(base) if config.optimizer == "adam" else None

    def next(self, gradient: Float[Tensor, "n *parts d"], number: int) -> Float[Tensor, "n *parts d"]:
        """The step to take after the evaluation of this number."""
        config, first = self.config, self.first
        if self.second is None:
            first.mul_(config.momentum).add_(F.normalize(gradient, dim=-1))
            return -self.length * F.normalize(first, dim=-1)
        first.mul_(config.momentum).add_(gradient, alpha=1 - config.momentum)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        unbiased = first / (1 - config.momentum ** (number + 1))
        spread = (self.second / (1 - 0.999 ** (number + 1))).sqrt()
        step: Tensor = -config.lr * unbiased / (spread + 1e-8)
        return step


def _penalised(
    penalty: Penalty, numbers: Int[Tensor, " n"], found: Found, active: Bool[Tensor, " n"], number: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *parts d"]]:
    """Value and gradient of an extra loss over the active facts, zero elsewhere."""
    index = active.nonzero()[:, 0]
    shift = found.delta[index].detach().requires_grad_()
    with torch.enable_grad():
        extra = penalty(Step(numbers[index], shift, found.base[index], number))
        # a penalty may have nothing to say of these facts, and then no gradient
        (slope,) = torch.autograd.grad(extra.sum(), shift, allow_unused=True) if extra.requires_grad else (None,)
    value, gradient = torch.zeros_like(found.loss), torch.zeros_like(found.delta)
    value[index] = extra.detach()
    if slope is not None:
        gradient[index] = slope
    return value, gradient
