"""WISE's training: one edit into a side memory, by masked gradient descent on its answer and on the margins.

A step runs the layers above the memory alone; what lies below is read once, in `rows`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import forward, hooks, patch
from retcon.arch import frozen
from retcon.lm import LM
from retcon.methods.wise.rows import Clean, Replay, Row, Site, clean_batches, read_clean
from retcon.methods.wise.shards import margin_loss, replay_loss
from retcon.precision import autocast, kernels, loss_scale

__all__ = ["Trained", "scored", "train"]

_NOTHING = Replay()


class Trained(NamedTuple):
    """A side memory after one edit more."""

    delta: Float[Tensor, "d_out d_in"]
    """fp32, on the CPU."""
    inside: Float[Tensor, " k"]
    """Scores of the edit's rows with these very weights."""
    outside: Float[Tensor, " n"]
    """Scores of the ordinary rows."""
    loss: float
    """Of the answer, in nats a token, at the last evaluation."""
    evaluations: int


def scored(lm: LM, site: Site, rows: Sequence[Row], delta: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " n"]:
    """The routing score of each row's prompt for a side memory; on the CPU."""
    found = torch.zeros(len(rows))
    for batch, clean in clean_batches(lm, site, rows):
        found[batch] = clean.scores(site, _added(clean, _wide(lm, clean, delta))).float().cpu()
    return found


def train(
    lm: LM,
    site: Site,
    rows: Sequence[Row],
    ordinary: Sequence[Row],
    mask: Bool[Tensor, "d_out d_in"],
    delta: Float[Tensor, "d_out d_in"],
    replay: Replay = _NOTHING,
) -> Trained:
    """Train a side memory on one edit: W' <- clip(W' - lr g ∘ M, W - c, W + c), with W' = W + delta.

    The loss is the mean over rows of the mean cross-entropy of the answer's tokens, plus that of the margins and of
    what is replayed. It ends after `site.steps` steps, or with `site.stop_on`: "loss", once that loss is at most
    `site.stop` and has changed by at most `site.stop_change`; "answer", once the answer's and the replay's are at most
    `site.stop` and the margin between the edit's rows and ordinary ones is kept.

    Args:
        lm: the model, with any patch already on.
        site: where and how.
        rows: the edit's, with answers.
        ordinary: prompts that are to stay outside.
        mask: the entries that may change.
        delta: the memory so far.
        replay: earlier edits, to be held where they belong.
    """
    clean, plain = read_clean(lm, site, rows, enter=True), read_clean(lm, site, ordinary)
    earlier = _Earlier.of(lm, site, replay)
    aim = _Aim.of(lm, rows, clean.rows.split)
    side, may = _wide(lm, clean, delta).clone(), mask.to(clean.read.device)
    miss, before, evaluations, scale = torch.zeros(()), float("inf"), 0, loss_scale(lm)
    with frozen(lm.model):
        for _ in range(site.steps):
            side.requires_grad_()
            with torch.enable_grad():
                added = _added(clean, side)
                miss = _miss(lm, site, clean, aim, added)
                inside, outside = _held_apart(site, clean, plain, side, added)
                replayed = earlier.loss(site, side)
                loss = miss + (margin_loss(inside, outside, site.margins) + replayed).to(miss.device)
                (slope,) = torch.autograd.grad(scale * loss, side)
            side, now = side.detach(), float(loss.detach())
            evaluations += 1
            if site.stop_on == "loss":
                settled = abs(before - now) <= site.stop_change and now <= site.stop
            else:
                apart = float(inside.detach().min() - outside.detach().max()) >= site.margins.between
                settled = apart and max(float(miss.detach()), float(replayed.detach())) <= site.stop
            if settled:
                break
            before = now
            side = (side - site.lr * torch.where(may, slope / scale, 0)).clamp_(-site.clip, site.clip)
    final = side.detach().float().cpu()
    side = _wide(lm, clean, final)
    ours, theirs = (states.scores(site, _added(states, side)).float().cpu() for states in (clean, plain))
    return Trained(final, ours, theirs, float(miss.detach()), evaluations)


def _held_apart(
    site: Site, clean: Clean, plain: Clean, side: Tensor, added: Float[Tensor, "rows width d_out"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " n"]]:
    """d_in and d_out: of the edit's rows and of ordinary ones, or of the subject in the edit's rows and of the rest."""
    where = clean.attended if site.margin_tokens == "all" else clean.prompt
    if site.scope == "subject":
        return clean.scores(site, added, where & clean.subject), clean.scores(site, added, where & ~clean.subject)
    return clean.scores(site, added, where), plain.scores(site, _added(plain, side))


@dataclass(slots=True)
class _Earlier:
    """Prompts of earlier edits, as the projection meets them."""

    clean: Clean | None
    """Of all of them; None where nothing is replayed."""
    sizes: list[int]
    """Rows of each group; the last are the memory's own."""

    @classmethod
    def of(cls, lm: LM, site: Site, replay: Replay) -> "_Earlier":
        groups = [*replay.others, replay.own]
        rows = [Row(row.prompt, []) for group in groups for row in group]
        return cls(read_clean(lm, site, rows) if rows else None, [len(group) for group in groups])

    def loss(self, site: Site, side: Float[Tensor, "d_out d_in"]) -> Tensor:
        """What keeps them where they belong."""
        if self.clean is None:
            return side.new_zeros(())
        *others, own = self.clean.scores(site, _added(self.clean, side)).split(self.sizes)
        return replay_loss(others, own, site.margins)


@dataclass(slots=True)
class _Aim:
    """The tokens that the model is to give."""

    at: tuple[Int[Tensor, " targets"], Int[Tensor, " targets"]]
    """Rows and columns whose logits predict them."""
    token: Int[Tensor, " targets"]
    weight: Float[Tensor, " targets"]
    """Of each in the mean over rows of the mean over a row's tokens."""

    @classmethod
    def of(cls, lm: LM, rows: Sequence[Row], split: int) -> "_Aim":
        at = [(r, split - 1 + t) for r, row in enumerate(rows) for t in range(len(row.target))]
        where = [torch.tensor(side, device=lm.device) for side in zip(*at, strict=True)]
        weight = [1 / len(row.target) / len(rows) for row in rows for _ in row.target]
        token = [token for row in rows for token in row.target]
        return cls((where[0], where[1]), torch.tensor(token, device=lm.device), torch.tensor(weight, device=lm.device))


def _wide(lm: LM, clean: Clean, delta: Tensor) -> Tensor:
    """The memory where the projection runs, in fp32 at least."""
    return delta.detach().to(clean.read.device, torch.promote_types(lm.dtype, torch.float32))


def _added(clean: Clean, side: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "rows width d_out"]:
    """What the side memory adds to the projection's outputs."""
    return F.linear(clean.read.to(side.dtype), side)


def _miss(lm: LM, site: Site, clean: Clean, aim: _Aim, added: Float[Tensor, "rows width d_out"]) -> Tensor:
    """Mean over rows of -log p a token of the answer, where every token passes the side memory."""
    rows = clean.rows
    outputs = (clean.gave.to(added.dtype) + added).to(clean.gave.dtype)
    with ExitStack() as stack:
        stack.enter_context(patch.prompts(lm.model, rows.split - 1))
        if clean.entered is not None:
            stack.enter_context(forward.entered_at(lm, site.layer, clean.entered))
        stack.enter_context(hooks.rewritten(lm.module(site.path), lambda states: outputs.view_as(states)))
        stack.enter_context(forward.gathered_head(lm, *aim.at))
        stack.enter_context(autocast(lm, site.precision))
        stack.enter_context(kernels(lm))
        logits = forward.call(lm, rows.ids, rows.mask, rows.positions).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(logits, aim.token, reduction="none") * aim.weight).sum()
