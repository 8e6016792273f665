"""WISE's training: one edit into a side memory, by masked gradient descent on its answer and on the margins.

Nothing below the edited projection depends on the side memory: what it reads and gives is computed once an edit, and a
step runs the layers above alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import forward, hooks, patch, tokens
from retcon.arch import frozen
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.methods.wise_shards import Margins, margin_loss
from retcon.patch.gated import distances, row_scores
from retcon.precision import Precision, autocast, kernels
from retcon.requests import Edit

__all__ = ["Clean", "Site", "Trained", "clean_batches", "edit_rows", "prompts_of", "read_clean", "scored", "train"]

_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a side memory stands, and how it is trained."""

    layer: int
    path: str
    """Of the projection."""
    skipped: bool
    """Whether the last memory on the projection is to be left out, as the one that is gone on from."""
    score: str
    activation: str
    long_prompt: str
    margins: Margins
    lr: float
    steps: int
    clip: float
    stop: float
    stop_change: float
    precision: Precision


class Row(NamedTuple):
    """A prompt and its answer as ids."""

    prompt: list[int]
    target: list[int]


@dataclass(slots=True)
class Clean:
    """What a projection reads and gives in some rows, without the side memory."""

    rows: Aligned
    entered: Float[Tensor, "rows width d"] | None
    """Input of the layer's block, where a forward can be entered there."""
    read: Float[Tensor, "rows width d_in"]
    gave: Float[Tensor, "rows width d_out"]
    prompt: Bool[Tensor, "rows width"]

    def scores(self, site: Site, added: Float[Tensor, "rows width d_out"]) -> Float[Tensor, " rows"]:
        """The routing score of each row for a memory that adds `added`, by its prompt tokens."""
        apart = distances(self.gave[self.prompt].to(added.dtype), added[self.prompt], site.score, site.activation)
        return row_scores(apart, self.prompt.nonzero()[:, 0], len(self.rows), site.long_prompt)


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


def edit_rows(lm: LM, edit: Edit, templates: Sequence[str]) -> list[Row]:
    """The edit's prompt by itself and after each template, with its answer.

    Raises:
        RequestError: the target has no token.
    """
    texts = [lm.render(prefix + edit.text) for prefix in ("", *templates)]
    return [Row(tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)) for text in texts]


def prompts_of(lm: LM, texts: Sequence[str]) -> list[Row]:
    """Texts as prompts without an answer."""
    return [Row(tokens.encode(lm, lm.render(text)), []) for text in texts]


def read_clean(lm: LM, site: Site, rows: Sequence[Row], *, enter: bool = False) -> Clean:
    """Run rows up to the projection, and keep what it reads and gives; with `enter`, what its block is entered with.

    What a memory that is gone on from gives is left out: with no prompt told, every memory stays silent.
    """
    sequences = [row.prompt + row.target[:-1] for row in rows]
    aligned = forward.align(sequences, [len(row.prompt) for row in rows], lm.device)
    block, module = lm.arch.blocks[site.layer], lm.module(site.path)
    enters = (enter or site.skipped) and site.layer > 0 and forward.entry_holds(lm)

    def run(last: int, before: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(patch.prompts(lm.model, last))
            if before is not None:  # what lies below stays as it was, with the memories there at work
                stack.enter_context(hooks.rewritten_input(module, lambda _: before["read"]))
            if before is not None and enters:
                stack.enter_context(forward.entered_at(lm, site.layer, before["entered"]))
            outside = stack.enter_context(hooks.record({"entered": lm.module(block)}, "input"))
            read = stack.enter_context(hooks.record({"read": module}, "input"))
            gave = stack.enter_context(hooks.record({"gave": module}, "output", stop_after="gave"))
            with hooks.stoppable():
                forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
            seen |= outside | read | gave
        return seen

    with lm.inference():
        seen = run(aligned.split - 1)
        gave = run(-1, seen)["gave"] if site.skipped else seen["gave"]
    read, gave = (hooks.unflattened(states, len(rows)) for states in (seen["read"], gave))
    attended = aligned.mask.bool().to(read.device)
    prompt = attended & (torch.arange(aligned.width, device=read.device) < aligned.split)
    read = read.masked_fill(~attended[:, :, None], 0)  # some models have NaN behind a mask
    return Clean(aligned, seen["entered"] if enter and enters else None, read, gave, prompt)


def clean_batches(lm: LM, site: Site, rows: Sequence[Row]) -> Iterator[tuple[list[int], Clean]]:
    """Many prompts, without their answers, run up to the projection in batches; with each batch, their numbers."""
    prompts = [Row(row.prompt, []) for row in rows]
    lengths = [len(row.prompt) for row in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    for batch in forward.batches(order, lengths, _BATCH_TOKENS):
        yield batch, read_clean(lm, site, [prompts[i] for i in batch])


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
) -> Trained:
    """Train a side memory on one edit: W' <- clip(W' - lr g ∘ M, W - c, W + c), with W' = W + delta.

    The loss is the mean over rows of the mean cross-entropy of the answer's tokens, plus that of the margins. It ends
    once the loss is at most `site.stop` and has changed by at most `site.stop_change`, or after `site.steps` steps.

    Args:
        lm: the model, with any patch already on.
        site: where and how.
        rows: the edit's, with answers.
        ordinary: prompts that are to stay outside.
        mask: the entries that may change.
        delta: the memory so far.
    """
    clean, plain = read_clean(lm, site, rows, enter=True), read_clean(lm, site, ordinary)
    aim = _Aim.of(lm, rows, clean.rows.split)
    side, may = _wide(lm, clean, delta).clone(), mask.to(clean.read.device)
    miss, before, evaluations = torch.zeros(()), float("inf"), 0
    with frozen(lm.model):
        for _ in range(site.steps):
            side.requires_grad_()
            with torch.enable_grad():
                added = _added(clean, side)
                miss = _miss(lm, site, clean, aim, added)
                inside, outside = clean.scores(site, added), plain.scores(site, _added(plain, side))
                loss = miss + margin_loss(inside, outside, site.margins).to(miss.device)
                (slope,) = torch.autograd.grad(loss, side)
            side, now = side.detach(), float(loss.detach())
            evaluations += 1
            if abs(before - now) <= site.stop_change and now <= site.stop:
                break
            before = now
            side = (side - site.lr * torch.where(may, slope, 0)).clamp_(-site.clip, site.clip)
    final = side.detach().float().cpu()
    side = _wide(lm, clean, final)
    inside, outside = (states.scores(site, _added(states, side)).float().cpu() for states in (clean, plain))
    return Trained(final, inside, outside, float(miss.detach()), evaluations)


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
