"""What methods that put facts before the prompt share: facts as ids, their memory, and how its gate is set."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import tokens
from retcon.arch import max_positions
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.methods.memories import last_part, name_of, without_edits
from retcon.methods.retained import retained_ids
from retcon.patch import Context, Entry, Patch
from retcon.patch.asking import Embedder
from retcon.patch.chain import chained, parts_of
from retcon.patch.context import ROOT, Embed
from retcon.requests import Edit, to_dict

__all__ = [
    "ORDINARY",
    "Entered",
    "budget_of",
    "content_of",
    "entered",
    "gate",
    "held_out",
    "memory_of",
    "newline",
    "statement",
    "text_ids",
    "without",
]

ORDINARY = (
    "The weather today is", "She opened the door and", "In the morning we", "How do I cook rice?", "The meeting was",
    "Once upon a time", "My favourite colour is", "Please write a letter to", "The train leaves at", "He was surprised",
    "What is the sum of 2 and 3?", "Last week the company", "If it rains tomorrow", "The children played",
    "A good way to learn is", "def main():",
)  # fmt: skip
"""Prompts about nothing that anybody edits: with the texts to keep, those that the gate is set by."""
_MOST_GATE = 0.95
"""The gate at most: a fact's own prompt has a cosine of 1, but for rounding."""
_CHUNK = 8192


class Entered(NamedTuple):
    """A memory with the facts of a call in it."""

    context: Context
    facts: list[dict[str, Any]]
    """What there is to tell of each."""
    embed: Embed


class _Frame(NamedTuple):
    opening: tuple[int, ...]
    start: int
    closing: tuple[int, ...]


def statement(prompt: str, answer: str) -> str:
    """A fact as one text: the prompt and what it goes on with."""
    return prompt + ("" if prompt[-1:].isspace() or prompt[-1:] in "([{“‘«" else " ") + answer


def newline(lm: LM) -> list[int]:
    """The ids of the end of a line."""
    return tokens.encode(lm, "\n")[len(tokens.special_ids(lm)[0]) :]


def text_ids(lm: LM, text: str) -> list[int]:
    """The ids of a text that begins a line, without what the tokenizer puts before every text.

    Tokenizers that begin a text with a space do so only where it stands first.
    """
    skipped, start = len(tokens.special_ids(lm)[0]), newline(lm)
    whole = tokens.encode(lm, "\n" + text)[skipped:]
    return whole[len(start) :] if whole[: len(start)] == start else tokens.encode(lm, text)[skipped:]


def content_of(lm: LM, text: str) -> list[int]:
    """The ids of a prompt as the model is asked it, without opening and closing."""
    opening, start, closing = _frame(lm)
    row = tokens.encode(lm, lm.render(text))
    length = next((n for n in (len(opening), start) if tuple(row[:n]) == opening[:n]), 0)
    end = len(row) - len(closing) if closing and tuple(row[-len(closing) :]) == closing else len(row)
    return row[length:end]


def budget_of(lm: LM, asked: int) -> int:
    """Tokens that a context may have: those asked for, and at most half of the model's positions.

    Raises:
        RetconError: none are asked for.
    """
    if asked < 1:
        raise RetconError(f"a budget of {asked} tokens leaves no room for a fact; give 1 or more")
    limit = max_positions(lm.model)
    return asked if limit is None else min(asked, limit // 2)


def memory_of(state: Patch | None, making: Mapping[str, Any]) -> Context | None:
    """The memory to go on from: the state's, where it comes last and the same method made it.

    Raises:
        RetconError: it was made with other options, or scaled.
    """
    last = last_part(state, ROOT)
    if not isinstance(last, Context) or last.making.get("method") != making["method"]:
        return None
    other = any(last.making.get(name, value) != value for name, value in making.items())
    if other or last.strength != 1:
        told = ", ".join(f"{key} {value}" for key, value in last.making.items() if value != "")
        raise RetconError(f"the state's context was made with {told}, strength {last.strength:g}; go on with the same")
    return last


def entered(
    lm: LM,
    old: Context | None,
    edits: Sequence[Edit],
    pieces: Callable[[Edit], list[list[int]]],
    retain: Sequence[str],
    budget: int,
    **settings: Any,
) -> Entered:
    """A memory with some more facts; one with the very prompt of an earlier fact takes its place.

    Args:
        lm: the model.
        old: the memory to go on from.
        edits: the facts.
        pieces: the text of a fact.
        retain: prompts to keep; they count among the documents that say which tokens are common.
        budget: tokens that a context may have.
        settings: further arguments of the `Context`.

    Raises:
        RequestError: a fact alone, a new one or one of the memory's, is longer than the budget; a prompt to keep has no
            token.
    """
    retained_ids(lm, retain)  # for its errors
    embed = Embedder(lm.model, hooked=True)
    frame = _frame(lm)
    facts: dict[tuple[int, ...], tuple[list[tuple[int, ...]], str]] = {}  # prompt -> pieces and id
    if old is not None:
        facts = {tuple(old.prompt(n)): (old.pieces(n), name) for n, name in enumerate(old.names)}
    counts, documents = _documents(lm, old, edits, retain)
    told = []
    for edit in edits:
        content, text, name = tuple(content_of(lm, edit.text)), pieces(edit), name_of(to_dict(edit))
        if len(text[-1]) > budget:
            raise RequestError(
                f"the fact {edit.text!r} takes {len(text[-1])} tokens and a context may have {budget}; raise the "
                "budget, or shorten the fact"
            )
        replaced = facts.pop(content, None)
        facts[content] = [tuple(piece) for piece in text], name
        told.append({"id": name, "tokens": len(text[-1])} | ({"replaces": [replaced[1]]} if replaced else {}))
    for known, name in facts.values():
        if (size := len(known[-1])) > budget:
            raise RequestError(
                f"the earlier fact {name!r} takes {size} tokens and a context may have {budget}; raise the budget"
            )
    weight: Any = lm.model.get_input_embeddings().weight
    center = _mean(embed, len(weight)) if old is None else old.center
    made = Context.made(
        list(facts), [text for text, _ in facts.values()], [name for _, name in facts.values()], counts, center, embed,
        vocabulary=len(weight), documents=documents, opening=frame.opening, start=frame.start, closing=frame.closing,
        budget=budget, **settings,
    )  # fmt: skip
    return Entered(made, told, embed)


def held_out(lm: LM, context: Context, embed: Embed, texts: Sequence[str]) -> Float[Tensor, " k"]:
    """The largest cosine of prompts that no fact should answer: texts, and each fact's own prompt to other facts."""
    vectors = context.vectors([content_of(lm, text) for text in texts], embed)
    others = [(vectors @ context.keys.T).amax(1)]
    if context.rank > 1:
        for start in range(0, context.rank, _CHUNK):
            part = context.keys[start : start + _CHUNK] @ context.keys.T
            part[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
            others.append(part.amax(1))
    return torch.cat(others)


def gate(cosines: Float[Tensor, " k"], leak: float) -> float:
    """The threshold that a share `leak` of held-out prompts exceeds; between 0 and 0.95."""
    return min(max(float(cosines.quantile(1 - leak)), 0.0), _MOST_GATE)


def without(made: Patch, method: str, ids: Iterable[str]) -> Patch:
    """A patch of contexts without some edits; the rest answer as before, and without any it is the bare model.

    Raises:
        PatchError: there is no such edit in it.
    """
    wanted = list(dict.fromkeys(ids))
    entries: dict[str, Entry] = dict(made.entries)
    found: set[str] = set()
    parts: list[Entry] = []
    for part in parts_of(made.entries[ROOT]) if ROOT in made.entries else ():
        mine = [name for name in wanted if isinstance(part, Context) and name in part.names]
        parts.append(part.without(mine) if isinstance(part, Context) and mine else part)
        found |= set(mine)
    if parts:
        entries[ROOT] = chained(parts)
    return without_edits(made, method, entries, wanted, found)


def _frame(lm: LM) -> _Frame:
    """What stands before and after the text of every prompt; probed once for each model and way of asking."""
    key = f"frame of chat {lm.chat}"
    if key not in lm.notes:
        lm.notes[key] = _found_frame(lm)
    frame: _Frame = lm.notes[key]
    return frame


def _found_frame(lm: LM) -> _Frame:
    start = tuple(tokens.special_ids(lm)[0])
    plain = _Frame(start, len(start), ())
    mark = "Where is it?"
    head, found, tail = lm.render(mark).partition(mark)
    if not lm.chat or not found:
        return plain
    opening, closing = tuple(tokens.encode(lm, head)), tuple(tokens.encode(lm, tail)[len(start) :]) if tail else ()
    row = tuple(tokens.encode(lm, lm.render(mark)))
    fits = row[: len(opening)] == opening and row[len(row) - len(closing) :] == closing
    return _Frame(opening, len(start), closing) if fits else plain


def _documents(lm: LM, old: Context | None, edits: Sequence[Edit], retain: Sequence[str]) -> tuple[Counter[int], int]:
    """How many documents hold each token, and how many there are.

    Documents are prompts, once more each without its subject, so that what the prompts of a relation share counts less
    than the subject even where there is one fact; and texts to keep.
    """
    counts: Counter[int] = Counter()
    number = 0
    if old is not None:
        counts.update(dict(zip(old.seen_ids.tolist(), old.seen_counts.tolist(), strict=True)))
        number = old.documents
    bare = [edit.prompt.replace("{}", "") for edit in edits if edit.subject is not None]
    for text in (*(edit.text for edit in edits), *(text for text in bare if text.strip()), *retain):
        counts.update(set(content_of(lm, text)))
        number += 1
    return counts, number


def _mean(embed: Embed, vocabulary: int) -> Float[Tensor, " d"]:
    """The mean of the input embeddings, summed in fp64."""
    total: Any = 0
    for start in range(0, vocabulary, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, vocabulary))
        total = total + embed(ids).detach().double().sum(0).cpu()
    mean: Tensor = (total / vocabulary).float()
    return mean
