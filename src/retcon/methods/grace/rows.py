"""The rows that GRACE's values are sought on: what of them no value changes is run once."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, patch, tokens
from retcon.lm import LM
from retcon.patch import Codebook
from retcon.patch.base import projection
from retcon.patch.chain import parts_of
from retcon.patch.codebook import replaced
from retcon.precision import Precision, autocast, kernels
from retcon.requests import Edit
from retcon.storage import salted

__all__ = ["BATCH_TOKENS", "Batch", "Question", "Seen", "Site", "batch_of", "misses", "question", "read_places"]

BATCH_TOKENS = 1024
"""Tokens of one forward, padding included."""


@dataclass(frozen=True, slots=True)
class Question:
    """An edit as the model reads it."""

    prompt: list[int]
    target: list[int]
    label: tuple[int, ...]
    """What tells its answer from others: the answer's ids, or numbers of our own where records hide the question."""

    @property
    def row(self) -> list[int]:
        """All ids but the last, which is only predicted."""
        return [*self.prompt, *self.target[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where values act, and how they are sought."""

    layer: int
    path: str
    """Of the projection."""
    mode: str
    """One of `retcon.patch.codebook.REPLACEMENTS`."""
    steps: int
    lr: float
    stop: float
    precision: Precision


class Seen(NamedTuple):
    """What a projection reads and gives at the last tokens of some prompts."""

    queries: Float[Tensor, "n d_in"]
    outputs: Float[Tensor, "n d_out"]
    """Its own, without any patch on it."""


def question(lm: LM, edit: Edit, *, end: bool) -> Question:
    """The ids of an edit's prompt and answer; with `end`, the answer closes with the end token, where there is one.

    Raises:
        RequestError: the target has no token.
    """
    text = lm.render(edit.text)
    last = lm.tokenizer.eos_token_id if end else None
    target = tokens.target_ids(lm, text, edit.target)
    target = target if last is None else [*target, int(last)]
    return Question(tokens.encode(lm, text), target, _hidden(target) if "subject" in edit.hidden else tuple(target))


def _hidden(target: Sequence[int]) -> tuple[int, ...]:
    """A label that tells answers apart on this machine, and nobody what they are: four numbers of 16 bits."""
    name = salted("label", *map(str, target))
    return tuple(int(name[start : start + 4], 16) for start in range(0, len(name), 4))


def read_places(lm: LM, path: str, prompts: Sequence[list[int]]) -> Seen:
    """Input and own output of a projection at each prompt's last token; fp32, on the CPU."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    own: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        own.append(states)
        return states

    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    module = lm.module(path)
    with lm.inference():
        for batch in forward.batches(order, [len(prompt) for prompt in prompts], BATCH_TOKENS):
            rows = [prompts[i] for i in batch]
            aligned = forward.align(rows, [len(row) for row in rows], lm.device)
            with (
                hooks.rewritten(module, keep, first=True),  # before what a patch may put in its place
                hooks.record({path: module}, "input", stop_after=None) as seen,
                hooks.record({path: module}, "output", stop_after=path),
                hooks.stoppable(),
            ):
                forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
            both = (hooks.unflattened(states, len(batch))[:, -1] for states in (seen[path], own.pop()))
            read, gave = (states.float().cpu() for states in both)
            found |= {i: (read[place], gave[place]) for place, i in enumerate(batch)}
    pairs = [found[i] for i in range(len(prompts))]
    return Seen(torch.stack([read for read, _ in pairs]), torch.stack([gave for _, gave in pairs]))


@dataclass(slots=True)
class Batch:
    """Rows that run together."""

    ids: Int[Tensor, "rows width"]
    """Of the columns that run."""
    mask: Int[Tensor, "rows past_and_width"]
    positions: Int[Tensor, "rows width"]
    last: int
    """Column of the last prompt token among those that run."""
    states: Float[Tensor, "rows width d"] | None
    """Clean input of the layer's block, where a forward can be entered there; nothing below it depends on a value."""
    where: Bool[Tensor, "rows width"]
    """The places that a value takes."""
    owner: Int[Tensor, " rows"]
    """Number of each row's value."""
    at: tuple[Tensor, Tensor]
    """Rows and columns whose logits predict the answer's tokens."""
    token: Int[Tensor, " targets"]
    past: list[tuple[Tensor, Tensor]]
    """Keys and values of the columns before, of each layer; empty where all columns run."""
    before: DynamicCache | None = None
    """The cache that they come from."""

    def kept(self, keep: Bool[Tensor, " rows"]) -> "Batch":
        """The batch with only the rows of `keep`."""
        rows, columns = self.at
        on, index = keep[rows], keep.nonzero()[:, 0]
        return replace(
            self,
            ids=self.ids[index],
            mask=self.mask[index],
            positions=self.positions[index],
            states=None if self.states is None else self.states[index],
            where=self.where[index],
            owner=self.owner[index],
            at=((keep.cumsum(0) - 1)[rows[on]], columns[on]),
            token=self.token[on],
            past=[(keys[index], values[index]) for keys, values in self.past],
        )


def batch_of(lm: LM, site: Site, asked: Sequence[Question]) -> Batch:
    """The rows of some questions, with what of them no value changes run once.

    Where the last prompt token alone takes a value, all that stands before it runs once too; the first batch of a model
    finds out whether that gives what whole rows give.
    """
    whole = _whole(lm, site, asked)
    if whole.states is None or site.mode != "replace_last" or whole.last == 0 or _others_decide(lm, site):
        return whole
    if "grace_cut" not in lm.notes:
        lm.notes["grace_cut"] = forward.cache_holds(lm) and _cut_holds(lm, site, whole, len(asked))
    return _cut(lm, site, whole) if lm.notes["grace_cut"] else whole


def _whole(lm: LM, site: Site, asked: Sequence[Question]) -> Batch:
    """The rows of some questions, run clean up to the layer."""
    rows = forward.align([item.row for item in asked], [len(item.prompt) for item in asked], lm.device)
    columns, last = torch.arange(rows.width, device=lm.device), rows.split - 1
    where = rows.mask.bool()
    if site.mode == "replace_last":
        where = where & (columns == last)
    elif site.mode == "replace_prompt":
        where = where & (columns < last)
    at = [(r, last + t) for r, item in enumerate(asked) for t in range(len(item.target))]
    states = None
    if site.layer > 0 and forward.entry_holds(lm):
        block = lm.arch.blocks[site.layer]
        with (
            torch.no_grad(),
            patch.prompts(lm.model, last),
            hooks.record({block: lm.module(block)}, "input", stop_after=block) as seen,
            hooks.stoppable(),
        ):
            forward.call(lm, rows.ids, rows.mask, rows.positions)
        states = seen[block]
    return Batch(
        rows.ids,
        rows.mask,
        rows.positions,
        last,
        states,
        where,
        torch.arange(len(asked), device=lm.device),
        (torch.tensor([r for r, _ in at], device=lm.device), torch.tensor([c for _, c in at], device=lm.device)),
        torch.tensor([token for item in asked for token in item.target], device=lm.device),
        [],
    )


def _others_decide(lm: LM, site: Site) -> bool:
    """Whether memories beside the one that is edited are on; theirs is decided on whole rows alone."""
    entries = [(path, entry) for item in patch.active(lm.model) for path, entry in item.entries.items()]
    here = [part for path, entry in entries if path == site.path for part in parts_of(entry) if not part.folds]
    others = any(path != site.path and not entry.folds for path, entry in entries)
    return others or len(here) > 1 or not all(isinstance(part, Codebook) for part in here)


def _cut(lm: LM, site: Site, whole: Batch) -> Batch:
    """The rows from the last prompt token on, and keys and values of what stands before it."""
    cut, last = whole.last, lm.arch.blocks[-1]
    assert whole.states is not None
    cache = DynamicCache()
    with (
        torch.no_grad(),
        patch.prompts(lm.model, -1),  # the prompt does not end in these columns, so no memory hits here
        forward.entered_at(lm, site.layer, whole.states[:, :cut]),
        hooks.record({last: lm.module(last)}, "output", stop_after=last),
        hooks.stoppable(),
        autocast(lm, site.precision),
    ):
        forward.call(lm, whole.ids[:, :cut], whole.mask[:, :cut], whole.positions[:, :cut], cache)
    layers: list[Any] = list(cache.layers)[site.layer :]
    return replace(
        whole,
        ids=whole.ids[:, cut:],
        positions=whole.positions[:, cut:],
        last=0,
        states=whole.states[:, cut:].clone(),
        where=whole.where[:, cut:],
        at=(whole.at[0], whole.at[1] - cut),
        past=forward.with_placeholders([(layer.keys, layer.values) for layer in layers], site.layer),
        before=cache,
    )


def _cut_holds(lm: LM, site: Site, whole: Batch, n: int) -> bool:
    """Whether rows that are cut are rated as whole ones."""
    value = torch.ones(n, projection(lm.model, site.path)[1][0], device=lm.device)
    with torch.no_grad():
        wanted, _ = misses(lm, site, whole, value)
        try:
            found, _ = misses(lm, site, _cut(lm, site, whole), value)
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, KeyError):
            return False  # the model does not take part in this way of running it
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1))


def misses(
    lm: LM, site: Site, batch: Batch, value: Float[Tensor, "k d_out"]
) -> tuple[Float[Tensor, " targets"], Bool[Tensor, " targets"]]:
    """-log p of every answer token with the values in their places, and whether it is the argmax."""
    rows = len(batch.ids)

    def change(states: Tensor) -> Tensor:
        whole = hooks.unflattened(states, rows)
        where, owner = batch.where.to(states.device), batch.owner
        return replaced(whole, where, value[owner].to(states.device)[:, None]).view_as(states)

    cache = None
    if batch.before is not None:
        cache = forward.filled(batch.past)
        patch.carry(lm.model, batch.before, cache, batch.owner)
    with ExitStack() as stack:
        stack.enter_context(patch.prompts(lm.model, batch.last))
        if batch.states is not None:
            stack.enter_context(forward.entered_at(lm, site.layer, batch.states))
        stack.enter_context(hooks.rewritten(lm.module(site.path), change))
        stack.enter_context(forward.gathered_head(lm, *batch.at))
        stack.enter_context(autocast(lm, site.precision))
        stack.enter_context(kernels(lm))
        logits = forward.call(lm, batch.ids, batch.mask, batch.positions, cache).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, batch.token, reduction="none"), logits.argmax(-1) == batch.token
