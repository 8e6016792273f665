"""Rows of ids, and what a model with a change on says at some of their places: shared by all that train a change.

A change acts through hooks, so gradients reach its own leaves alone: no weight of the model is written, and none is
given a gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retcon import forward, hooks, memory, patch, tokens
from retcon.lm import LM
from retcon.methods.retained import answered, retained_ids
from retcon.patch import Entry
from retcon.requests import Edit

__all__ = [
    "BATCH_TOKENS",
    "Change",
    "Entered",
    "Place",
    "Row",
    "Text",
    "acting",
    "end_ids",
    "logits_at",
    "lowest",
    "misses",
    "row_of",
    "rows_of",
    "states_at",
    "states_below",
    "texts_of",
]

Place = Literal["masked", "last_position"]
"""`masked`: each token of the target where it is predicted; `last_position`: all of them at the prompt's last token."""

BATCH_TOKENS = 1024
"""Tokens of one forward, padding included; a mini-batch that is larger adds up the gradients of several."""
_LONGEST = 256
"""Tokens of a text to keep and its answer that are looked at."""
_KEPT_BYTES = 2**29
"""The most that states below the lowest trained layer may take, so that these layers run once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request: what runs, and which tokens are wanted where."""

    ids: list[int]
    at: list[int]
    """For each token of the target, the index in `ids` at which it is to be predicted."""
    target: list[int]
    last: int | None = None
    """The index of the prompt's last token, by which memories that are on decide; by default where the first token of
    the target is predicted."""

    @property
    def end(self) -> int:
        """The index of the prompt's last token."""
        return self.at[0] if self.last is None else self.last


class Text(NamedTuple):
    """A text to keep."""

    ids: list[int]
    """Its own, and those of what the model says after it."""
    end: int
    """The index of its own last token."""


class Change(Protocol):
    """What is trained."""

    @property
    def leaves(self) -> Sequence[Tensor]:
        """The trained tensors; they want gradients."""

    def entries(self) -> Mapping[str, Entry]:
        """By module path, what they add; gradients flow through it to the leaves."""

    def confine(self) -> None:
        """After a step, bring the leaves back to where they are allowed to be."""


class Entered(NamedTuple):
    """A block to begin with, and what it reads in each row."""

    layer: int
    states: Sequence[Float[Tensor, "_ d"]]


def end_ids(lm: LM, eos: bool) -> list[int]:
    """The end token where it is asked for and the tokenizer has one; else nothing."""
    return [lm.tokenizer.eos_token_id] if eos and lm.tokenizer.eos_token_id is not None else []


def rows_of(lm: LM, edits: Sequence[Edit], place: Place = "masked", *, eos: bool = False) -> list[Row]:
    """One row for each edit; where its tokens are predicted is told by lengths, never by padding or a mask.

    Args:
        lm: the model.
        edits: the facts, with or without a subject.
        place: where target tokens are scored.
        eos: whether the end token, if the tokenizer has one, follows each target.

    Raises:
        RequestError: a target has no token.
    """
    return [row_of(lm, edit.text, edit.target, place, eos=eos) for edit in edits]


def row_of(lm: LM, prompt: str, target: str, place: Place = "masked", *, eos: bool = False) -> Row:
    """The row of one prompt and what is to follow it; see `rows_of`.

    Raises:
        RequestError: the target has no token.
    """
    text = lm.render(prompt)
    ids, wanted = tokens.encode(lm, text), [*tokens.target_ids(lm, text, target), *end_ids(lm, eos)]
    last = len(ids) - 1
    if place == "last_position":
        return Row(ids, [last] * len(wanted), wanted)
    return Row([*ids, *wanted[:-1]], list(range(last, last + len(wanted))), wanted)


def texts_of(lm: LM, retain: Sequence[str], answer_tokens: int = 0) -> list[Text]:
    """Texts to keep and the model's own answers to them, at most 256 ids of each.

    Raises:
        RequestError: a text has no second token, so nothing in it is predicted.
        RetconError: `answer_tokens` is negative.
    """
    retained_ids(lm, retain, least=2)
    found = answered(lm, retain, answer_tokens)
    return [Text(one.ids[:_LONGEST], min(len(one.prompt), _LONGEST) - 1) for one in found]


def misses(
    lm: LM, rows: Sequence[Row], entries: Mapping[str, Entry], entered: Entered | None = None
) -> list[Float[Tensor, " n"]]:
    """The cross-entropy of each row's target tokens, in nats; gradients flow through the entries."""
    at = [(r, column) for r, row in enumerate(rows) for column in row.at]
    logits = logits_at(lm, [row.ids for row in rows], at, entries, entered, [row.end for row in rows])
    wanted = torch.tensor([token for row in rows for token in row.target], device=logits.device)
    return list(F.cross_entropy(logits, wanted, reduction="none").split([len(row.target) for row in rows]))


def logits_at(
    lm: LM,
    rows: Sequence[list[int]],
    at: Sequence[tuple[int, int]],
    entries: Mapping[str, Entry],
    entered: Entered | None = None,
    ends: Sequence[int] | None = None,
) -> Float[Tensor, "n vocabulary"]:
    """Logits at some (row, column), in fp32 at least, with the entries on.

    Args:
        lm: the model, with any patch already on.
        rows: ids.
        at: the places, one at least.
        entries: by module path, what is added; none gives the model without the change.
        entered: where the layers below are not to run again, the block to begin with and what it reads.
        ends: the index of each row's last prompt token, which memories that are on decide by; None: rows are prompts.
    """
    aligned = forward.align(rows, [0] * len(rows), lm.device)
    places, columns = (torch.tensor(side, device=lm.device) for side in zip(*at, strict=True))
    with ExitStack() as stack:
        if entered is not None:
            states = pad_sequence(list(entered.states), batch_first=True)
            stack.enter_context(forward.entered_at(lm, entered.layer, states))
        stack.enter_context(_told(lm, ends))
        stack.enter_context(acting(lm, entries))
        stack.enter_context(forward.gathered_head(lm, places, columns))
        logits: Tensor = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits[0]
    return logits if logits.dtype == torch.float64 else logits.float()


def states_at(
    lm: LM,
    rows: Sequence[list[int]],
    at: Sequence[tuple[int, int]],
    entries: Mapping[str, Entry],
    layer: int,
    ends: Sequence[int] | None = None,
) -> Float[Tensor, "n d"]:
    """What the block of a layer gives at some (row, column), in fp32 at least; the layers above it do not run."""
    aligned = forward.align(rows, [0] * len(rows), lm.device)
    path = lm.arch.blocks[layer]
    block = {path: lm.module(path)}
    with ExitStack() as stack:
        stack.enter_context(_told(lm, ends))
        stack.enter_context(acting(lm, entries))
        seen = stack.enter_context(hooks.record(block, "output", stop_after=path))
        stack.enter_context(hooks.stoppable())
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
    states = hooks.unflattened(seen[path], len(aligned))
    places, columns = (torch.tensor(side, device=states.device) for side in zip(*at, strict=True))
    found = states[places, columns]
    return found if found.dtype == torch.float64 else found.float()


def _told(lm: LM, ends: Sequence[int] | None) -> AbstractContextManager[None]:
    """Memories that are on are told where the prompts of rows end that begin in column 0."""
    return nullcontext() if ends is None else patch.prompts(lm.model, ends)


@contextmanager
def acting(lm: LM, entries: Mapping[str, Entry]) -> Iterator[None]:
    """Run the model with entries that gradients flow through; those of `patch.hooked` are cut off from them."""
    modules = {path: lm.module(path) for path in entries}
    with hooks.record(modules, "input") as seen, ExitStack() as stack:

        def changed(path: str, output: Tensor) -> Tensor:
            return entries[path].apply(seen[path], output)

        for path, module in modules.items():
            stack.enter_context(hooks.rewritten(module, partial(changed, path)))
        yield


def lowest(lm: LM, entries: Mapping[str, Entry]) -> int:
    """The lowest layer that has an entry."""
    owned = (i for i, block in enumerate(lm.arch.blocks) if any(path.startswith(f"{block}.") for path in entries))
    return next(owned, 0)


def states_below(
    lm: LM, rows: Sequence[list[int]], layer: int, ends: Sequence[int]
) -> list[Float[Tensor, "_ d"]] | None:
    """What the block of a layer reads in each row, which no training above changes; None where it is not to be kept."""
    size = sum(map(len, rows)) * lm.arch.d_model * lm.dtype.itemsize
    if layer == 0 or size > _KEPT_BYTES or not forward.entry_holds(lm):
        return None
    path, lengths = lm.arch.blocks[layer], [len(ids) for ids in rows]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in forward.batches(sorted(range(len(rows)), key=lambda i: (lengths[i], rows[i])), lengths, BATCH_TOKENS):
        aligned = forward.align([rows[i] for i in part], [0] * len(part), lm.device)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_told(lm, [ends[i] for i in part]))
            seen = stack.enter_context(hooks.record({path: lm.module(path)}, stop_after=path))
            stack.enter_context(hooks.stoppable())
            forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
        for r, i in enumerate(part):
            found[i] = seen[path][r, : lengths[i]].clone()
    memory.give_back()
    return found
