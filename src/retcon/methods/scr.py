"""SCR: retrieved facts go before a prompt if the model confirms that they bear on it (arXiv 2503.05212)."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch

from retcon import tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import in_context
from retcon.methods.in_context import (
    ORDINARY,
    Entered,
    budget_of,
    content_of,
    entered,
    held_out,
    memory_of,
    newline,
    statement,
    text_ids,
)
from retcon.methods.memories import MemoryMethod, put_on
from retcon.methods.record import as_patch, clock, refuse_none, resumed, timed
from retcon.patch import Context, Patch
from retcon.patch.asking import answers
from retcon.patch.context import ROOT, Question
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["SCR", "SCRConfig", "without"]

_ASKED = 32
"""Facts, and prompts to keep, that the threshold is set by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SCRConfig:
    """Options of SCR."""

    nearest: int = 4
    """Facts that are retrieved for a prompt, and that the model is asked about."""
    near: float = 0.1
    """Cosine that a fact must exceed to be asked about at all."""
    confirm: float | Literal["auto"] = "auto"
    """log p(yes) - log p(no) beyond which a fact is confirmed; `auto`: half-way between the median for facts and their
    own prompts, and that for prompts which the nearest fact should not answer."""
    budget: int = 512
    """Tokens of a context, at most half of the model's positions; the least similar facts go first."""
    encoder: str | None = None
    """A sentence encoder to compare prompts by: a name or folder for sentence-transformers, which comes with
    `pip install retcon-lm[encoder]`; by default the model's own input embeddings."""


class SCR(MemoryMethod):
    """SCR: the model reads the facts that it confirms to bear on the prompt; where there is none, it answers plainly.

        near      = the 4 facts with the largest cosine to the prompt, of idf-weighted means of input embeddings
        confirmed = those with log p(yes | question, fact, prompt) - log p(no | ...) > threshold

    Each prompt costs one forward of its questions; nothing is generated to decide. Prompts and defaults are ours.

    Paper: He, Song, Sun, Knowledge Updating? No More Model Editing! Just Selective Contextual Reasoning, 2025,
    arXiv 2503.05212; compared with parameter editors in arXiv 2505.18690.
    """

    Config: Any = SCRConfig
    quotes: bool = True
    """Its patches hold the prompts, as ids."""
    config: SCRConfig
    name: str = "scr"
    in_context: bool = True
    """Whether its patches work is up to the model's reading."""

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Enter the facts; with `state`, into its context, in a patch that contains it.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: prompts to keep: they set the threshold together with the facts' own prompts, each against the
                nearest other fact, and with a few ordinary ones.
            state: the patch to go on from.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a fact is longer than the budget.
            RetconError: there is no edit, an option makes no sense, or the state's context was made with other options.
        """
        refuse_none(edits)
        config = self.config
        if config.nearest < 1:
            raise RetconError(f"nearest is {config.nearest}; at least one fact must be retrieved")
        making = {
            "method": self.name, "nearest": config.nearest, "near": config.near, "encoder": config.encoder or "",
            "confirm": config.confirm,
        }  # fmt: skip
        old, budget = memory_of(state, making), budget_of(lm, config.budget)
        seconds = clock()
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state, texts=True))
            stack.enter_context(lm.inference())
            with timed(seconds, "targets"):
                made = entered(
                    lm, old, edits, lambda edit: [text_ids(lm, _line(edit))], retain, budget,
                    most=config.nearest, threshold=config.near, question=_question(lm),
                    encoder=config.encoder or "", making=making,
                )  # fmt: skip
            with timed(seconds, "statistics"):
                threshold = config.confirm if config.confirm != "auto" else _threshold(lm, made, retain)
                floor = -math.inf if old is None else old.making.get("floor", -math.inf)
                threshold = max(float(threshold), floor)  # what was to be kept then stays kept
                floor = threshold if retain else floor
                context = made.context.confirmed_above(threshold).remade(making | _floor(floor))
                told = {}
                if retain:
                    kept = held_out(lm, context, made.embed, retain)[: len(retain)]
                    told["retain_asked"] = round(float((kept > config.near).float().mean()), 5)
            info = {"targets_cached": 0, "confirm": threshold, **told, "facts": made.facts}
            alone = as_patch(lm, self.name, config, edits, {ROOT: context}, None, {}, seconds, info)
        return put_on(state, alone, ROOT, context, in_place=old is not None)


def without(made: Patch, ids: Iterable[str]) -> Patch:
    """A patch of SCR without some edits; the rest answer as before, and without any it is the bare model.

    Args:
        made: the patch.
        ids: of the edits; the `id` in their record, or, where they have none, the one in `info["facts"]`.

    Raises:
        PatchError: there is no such edit in it.
    """
    return in_context.without(made, SCR.name, ids)


def _floor(value: float) -> dict[str, float]:
    """How a context remembers the lowest threshold that texts to keep allow; JSON has no infinity."""
    return {"floor": value} if math.isfinite(value) else {}


def _line(edit: Edit) -> str:
    text = statement(edit.text, edit.target)
    return f"New fact: {text}" + ("\n" if text[-1] in ".!?" else ".\n")


def _question(lm: LM) -> Question:
    """What the model is asked, after the fact's own line; its threshold is set later.

    Raises:
        RetconError: yes and no are the same token.
    """
    between = text_ids(lm, "Text to be completed:\n")
    after = [
        *newline(lm),
        *text_ids(lm, "Does the new fact above tell how this text goes on? Answer yes or no.\nAnswer:"),
    ]
    asked = lm.render("Answer:")
    yes, no = (tokens.target_ids(lm, asked, word) for word in ("yes", "no"))
    shared = next((n for n, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1]), None)
    if shared is None:
        raise RetconError("this tokenizer spells yes and no alike, so the model cannot be asked; take the method ike")
    ahead = [] if lm.chat else yes[:shared]  # a chat turn is closed before the answer
    return Question(tuple(between), (*after, *ahead), yes[shared], no[shared], 0.0)


def _threshold(lm: LM, made: Entered, retain: Sequence[str]) -> float:
    """Half-way between the median answers to facts with their own prompts, and to facts with other prompts."""
    context = made.context
    newest = range(max(0, context.rank - _ASKED), context.rank)
    own = [context.asking(fact, context.prompt(fact)) for fact in newest]
    others = []
    for fact in newest if context.rank > 1 else ():
        cosines = context.keys @ context.keys[fact]
        cosines[fact] = -torch.inf
        others.append(context.asking(int(cosines.argmax()), context.prompt(fact)))
    for text in (*ORDINARY, *retain[:_ASKED]):
        content = content_of(lm, text)
        nearest = int((context.keys @ context.vector(content, made.embed)).argmax())
        others.append(context.asking(nearest, content))
    return (_median(lm, context, own) + _median(lm, context, others)) / 2


def _median(lm: LM, context: Context, rows: Sequence[Sequence[int]]) -> float:
    return float(torch.tensor(answers(lm.model, context, rows)).median())
