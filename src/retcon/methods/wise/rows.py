"""The rows that a side memory is trained and scored on: what the projection reads and gives in them without it.

Nothing below the edited projection depends on the side memory, so this is computed once an edit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retcon import forward, hooks, patch, tokens
from retcon.errors import RequestError
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.methods.wise.shards import Margins
from retcon.patch.gated import distances, row_scores
from retcon.precision import Precision
from retcon.requests import Edit, literal, split_prompt

__all__ = ["Clean", "Replay", "Row", "Site", "clean_batches", "edit_rows", "prompts_of", "read_clean"]

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
    scope: Literal["prompt", "subject"] = "prompt"
    """Which tokens the margins hold apart; see `WISEConfig.scope`."""
    margin_tokens: Literal["prompt", "all"] = "prompt"
    lr: float
    steps: int
    clip: float
    stop: float
    stop_change: float
    precision: Precision
    stop_on: Literal["answer", "loss"] = "loss"
    """See `WISEConfig.stop_on`."""


class Row(NamedTuple):
    """A prompt and its answer as ids."""

    prompt: list[int]
    target: list[int]
    subject: tuple[int, int] = (0, 0)
    """First token of the subject in the prompt, and the one after its last; of no use where it is not asked for."""


class Replay(NamedTuple):
    """Earlier edits, whose prompts are held where they belong while another one is trained."""

    others: Sequence[Sequence[Row]] = ()
    """Of each other memory, the rows of one edit: they stay outside."""
    own: Sequence[Row] = ()
    """Of the very memory: they stay inside."""


@dataclass(slots=True)
class Clean:
    """What a projection reads and gives in some rows, without the side memory."""

    rows: Aligned
    entered: Float[Tensor, "rows width d"] | None
    """Input of the layer's block, where a forward can be entered there."""
    read: Float[Tensor, "rows width d_in"]
    gave: Float[Tensor, "rows width d_out"]
    attended: Bool[Tensor, "rows width"]
    """Where tokens stand, the answer's included."""
    prompt: Bool[Tensor, "rows width"]
    subject: Bool[Tensor, "rows width"]

    def scores(
        self,
        site: Site,
        added: Float[Tensor, "rows width d_out"],
        where: Bool[Tensor, "rows width"] | None = None,
    ) -> Float[Tensor, " rows"]:
        """The score of each row for a memory that adds `added`, by some tokens; by its prompt's, the routing score."""
        at = self.prompt if where is None else where
        apart = distances(self.gave[at].to(added.dtype), added[at], site.score, site.activation)
        return row_scores(apart, at.nonzero()[:, 0], len(self.rows), site.long_prompt)


def edit_rows(lm: LM, edit: Edit, templates: Sequence[str], *, subject: bool = False) -> list[Row]:
    """The edit's prompt by itself and after each template, with its answer; with `subject`, where that stands.

    Raises:
        RequestError: the target has no token; the subject is asked for and the edit has none, or no token holds it.
    """
    if subject and not edit.subject:
        raise RequestError(
            f"the edit {edit.text!r} has no subject, and with scope subject the margins are those of its tokens; "
            "name the subject, or use scope prompt"
        )
    rows = []
    for prefix in ("", *templates):
        text = lm.render(prefix + edit.text)
        where = _subject(lm, edit, prefix) if subject else (0, 0)
        rows.append(Row(tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target), where))
    return rows


def _subject(lm: LM, edit: Edit, prefix: str) -> tuple[int, int]:
    """The token with the subject's first character, and the one after that with its last."""
    head, tail = split_prompt(edit.prompt)
    name = str(edit.subject)
    first = tokens.locate_subject(lm, f"{literal(head)}{{}}{literal(name[1:] + tail)}", name[0], prefix).site
    return first, tokens.locate_subject(lm, edit.prompt, name, prefix).site + 1


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
    columns = torch.arange(aligned.width, device=read.device)
    prompt = attended & (columns < aligned.split)
    start = aligned.split - torch.tensor([len(row.prompt) for row in rows], device=read.device)[:, None]
    first, end = torch.tensor([row.subject for row in rows], device=read.device).T[:, :, None] + start  # (rows, 1) each
    subject = prompt & (first <= columns) & (columns < end)
    read = read.masked_fill(~attended[:, :, None], 0)  # some models have NaN behind a mask
    return Clean(aligned, seen["entered"] if enter and enters else None, read, gave, attended, prompt, subject)


def clean_batches(lm: LM, site: Site, rows: Sequence[Row]) -> Iterator[tuple[list[int], Clean]]:
    """Many prompts, without their answers, run up to the projection in batches; with each batch, their numbers."""
    prompts = [Row(row.prompt, []) for row in rows]
    lengths = [len(row.prompt) for row in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    for batch in forward.batches(order, lengths, _BATCH_TOKENS):
        yield batch, read_clean(lm, site, [prompts[i] for i in batch])
