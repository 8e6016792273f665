"""From questions and texts to what an objective is computed from: rows, drawn batches, logits and states in places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retcon import forward, tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods.retained import Answered, answered
from retcon.methods.training_rows import BATCH_TOKENS, Row, end_ids, logits_at, misses, row_of, states_at, texts_of
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.objectives import IGNORED, Sequences
from retcon.metrics.perplexity import ordinary_text
from retcon.patch import Entry
from retcon.requests import Edit
from retcon.storage import digest

__all__ = ["Kept", "Material", "drawn", "labels_of", "nlls", "order_of", "packed", "read"]

Kept = str | tuple[str, str]
"""What is to stay: a text, or a question with its answer."""

_ORDINARY = 64
"""Tokens of each paragraph of ordinary text."""


@dataclass(frozen=True, slots=True)
class Material:
    """The rows of one run."""

    answers: list[Row]
    """Of each question to forget with its answer; empty where an objective does without and none is known."""
    refusals: list[Row]
    """The same questions with refusals, where the objective learns those."""
    kept: list[Row]
    """What is to stay."""
    ordinary: list[Row]
    """Ordinary text, which is looked at where there is nothing to keep; it is never trained on."""
    order: list[int]
    """The number that each question has in the caller's list: rows have an order of their own, so that his has no part
    in what is drawn."""

    @classmethod
    def of(
        cls, lm: LM, edits: Sequence[Edit], retain: Sequence[Kept], config: UnlearningConfig, sides: Sequence[str]
    ) -> "Material":
        """The rows of some edits: prompt and `old` are a question and its answer, `target` the refusal.

        Args:
            lm: the model.
            edits: the questions.
            retain: what is to stay; of a text all tokens count, of a pair the answer's.
            config: options.
            sides: what the objective is computed from, `forget` for answers, `refusal`.

        Raises:
            RequestError: an answer that is needed is missing, a text has no token, a text to keep fewer than two.
        """
        answers = _answers(lm, edits, config, needed="forget" in sides)
        refusals = [row_of(lm, edit.text, edit.target, eos=config.eos) for edit in edits] if "refusal" in sides else []
        both = [rows for rows in (answers, refusals) if rows]
        order = sorted(range(len(edits)), key=lambda i: [(rows[i].ids, rows[i].target) for rows in both])
        answers, refusals = ([rows[i] for i in order] if rows else [] for rows in (answers, refusals))
        kept = _own_kept if config.retain_answers == "own" else _given
        texts = () if retain else ordinary_text().split("\n\n")
        ordinary = [_whole(tokens.encode(lm, text)[:_ORDINARY]) for text in texts]
        return cls(answers, refusals, kept(lm, retain, config), ordinary, order)

    def side(self, name: str) -> list[Row]:
        """The rows of a side of an objective."""
        return {"forget": self.answers, "refusal": self.refusals, "retain": self.kept}[name]


def _given(lm: LM, retain: Sequence[Kept], config: UnlearningConfig) -> list[Row]:
    """What is to stay, as it is told."""
    return [_kept(lm, item, config) for item in retain]


def _answers(lm: LM, edits: Sequence[Edit], config: UnlearningConfig, *, needed: bool) -> list[Row]:
    """Each question with the answer to forget, in the order of the edits; none at all where one is not known and none
    is needed."""
    own: Sequence[Row | None] = [None] * len(edits)
    if config.forget_answers == "own":
        said = answered(lm, [edit.text for edit in edits], config.retain_tokens, "answers to forget")
        own = [_own(lm, one, config) for one in said]
    rows = []
    for edit, row in zip(edits, own, strict=True):
        if row is not None:
            rows.append(row)
        elif edit.old is not None:
            rows.append(row_of(lm, edit.text, edit.old, eos=config.eos))
        elif needed:
            raise RequestError(f"the answer to forget of {edit.text!r} is not told; give it as old (target_true)")
        else:
            return []
    return rows


def _own_kept(lm: LM, retain: Sequence[Kept], config: UnlearningConfig) -> list[Row]:
    """The texts and questions with what the model says to them by itself; of some it may say nothing."""
    said = answered(lm, [item if isinstance(item, str) else item[0] for item in retain], config.retain_tokens)
    found = (_own(lm, one, config, whole=config.retain_prompts) for one in said)
    return [row for row in found if row is not None]


def _own(lm: LM, one: Answered, config: UnlearningConfig, *, whole: bool = False) -> Row | None:
    """A prompt with the model's own answer, of which the answer's tokens count, or all; None where there is none."""
    target = [*one.answer, *end_ids(lm, config.eos and one.ended)]
    if not target:
        return None
    first = 0 if whole else len(one.prompt) - 1
    ids = [*one.prompt, *target]
    return Row(ids[:-1], list(range(first, len(ids) - 1)), ids[first + 1 :], len(one.prompt) - 1)


def _kept(lm: LM, item: Kept, config: UnlearningConfig) -> Row:
    """The row of something to keep."""
    if isinstance(item, str):
        ((ids, _),) = texts_of(lm, [item])
        return _whole(ids)
    row = row_of(lm, *item, eos=config.eos)
    if not config.retain_prompts:
        return row
    ids = [*row.ids, row.target[-1]]
    return Row(ids[:-1], list(range(len(ids) - 1)), ids[1:], row.end)


def _whole(ids: list[int]) -> Row:
    """A row of which every token is predicted."""
    return Row(ids[:-1], list(range(len(ids) - 1)), ids[1:], len(ids) - 2)


def order_of(n: int, *what: object) -> list[int]:
    """The numbers below n in an order that depends on a seed and whatever else is named, and on nothing else."""
    return torch.randperm(n, generator=_generator(*what)).tolist()


def drawn(n: int, k: int, number: int, seed: int, how: Literal["replace", "cycle"]) -> list[int]:
    """The numbers below n of the k texts of a step: each drawn by itself, or all in turn, pass by pass."""
    if how == "replace":
        return torch.randint(n, (k,), generator=_generator(seed, "kept", number)).tolist()
    places = range(number * k, (number + 1) * k)
    passes = {place // n: order_of(n, seed, "kept", place // n) for place in places}
    return [passes[place // n][place % n] for place in places]


def _generator(*what: object) -> torch.Generator:
    """A generator of its own for everything that is drawn, so that a run can begin at any step."""
    return torch.Generator().manual_seed(int(digest(*what)[:12], 16))


def read(
    lm: LM,
    rows: Sequence[Row],
    entries: Mapping[str, Entry],
    *,
    layer: int | None = None,
    compared: bool = False,
    reference_nll: Float[Tensor, " B"] | None = None,
) -> Sequences:
    """What an objective is computed from, gradients flowing through the entries: places without a label are left out.

    Args:
        lm: the model, with any patch already on.
        rows: the sequences.
        entries: the change, by module path.
        layer: whose states are read; None for logits.
        compared: whether the model without the change is read too, as the reference.
        reference_nll: s of each sequence before training, where it is known.
    """
    ids, at = [row.ids for row in rows], [(r, column) for r, row in enumerate(rows) for column in row.at]
    ends = [row.end for row in rows]

    def seen(entries: Mapping[str, Entry]) -> Float[Tensor, "B T k"]:
        if layer is None:
            return packed(rows, logits_at(lm, ids, at, entries, ends=ends))
        return packed(rows, states_at(lm, ids, at, entries, layer, ends))

    before = None
    if compared:
        with torch.no_grad():
            before = seen({})
    now = seen(entries)
    labels = labels_of(rows).to(now.device)
    if layer is not None:
        return Sequences(labels=labels, states=now, reference_states=before)
    return Sequences(labels=labels, logits=now, reference_logits=before, reference_nll=reference_nll)


def labels_of(rows: Sequence[Row]) -> Int[Tensor, "B T"]:
    """The targets, each row's from its second place on."""
    found = torch.full((len(rows), 1 + max(len(row.target) for row in rows)), IGNORED)
    for r, row in enumerate(rows):
        found[r, 1 : 1 + len(row.target)] = torch.tensor(row.target)
    return found


def packed(rows: Sequence[Row], values: Float[Tensor, "n k"]) -> Float[Tensor, "B T k"]:
    """What was read where targets are predicted, row by row, one place before each label."""
    owner = torch.tensor([r for r, row in enumerate(rows) for _ in row.target], device=values.device)
    column = torch.tensor([t for row in rows for t in range(len(row.target))], device=values.device)
    room = values.new_zeros(len(rows), 1 + max(len(row.target) for row in rows), values.shape[1])
    return room.index_put((owner, column), values)


@torch.no_grad()
def nlls(lm: LM, rows: Sequence[Row], entries: Mapping[str, Entry]) -> Float[Tensor, " n"]:
    """s of each row: the sum of -log p over its target's tokens, in nats."""
    found, lengths = torch.zeros(len(rows), dtype=torch.float64), [len(row.ids) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (lengths[i], rows[i].ids, rows[i].target))
    for part in forward.batches(order, lengths, BATCH_TOKENS):
        sums = [miss.double().sum() for miss in misses(lm, [rows[i] for i in part], entries)]
        found[part] = torch.stack(sums).cpu()
    return found
