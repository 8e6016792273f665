"""Other tokenisations: does the answer come out when the same text comes in other tokens?

An edit's key is read at certain tokens; the same string, cut into other pieces of the vocabulary, passes it by while
the model still understands it (arXiv 2609.29045: 38.6 % of alternative tokenisations bypass the change). Of the subject
alone, and of the whole question; the chat template is left as it is. That the bytes are the same is checked for each.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from retcon.errors import RequestError, RetconError
from retcon.forget.subjects import find_subjects
from retcon.probes.scene import Finding, Scene, question_ids
from retcon.probes.splits import Cuts, Pieces, span_of
from retcon.probes.tries import finding, joined
from retcon.storage import digest

__all__ = ["Tokenisation", "other_splits", "run"]

Where = Literal["subject", "prompt"]
_ATTEMPTS = 5
"""Draws for each split that is wanted; short strings have few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenisation:
    """Options of the tokenisation probe."""

    splits: int = 20
    """Ways to cut the text that are tried, as far as it has so many."""
    where: tuple[Where, ...] = ("subject", "prompt")
    """What is cut anew: the subject alone, or the whole question; each is a row of its own."""
    thrift: float = 0.1
    """What a further piece costs: a way of k pieces is drawn with probability ~ thrift^k. 1: all ways are equal, and
    most of them go letter by letter; so it is for a text that has not splits enough otherwise."""


def run(scene: Scene, config: Tokenisation) -> Iterator[Finding]:
    """Share of the questions of which one split, and share of splits that, bring the answer out."""
    if config.splits < 1 or not 0 < config.thrift <= 1:
        raise RetconError("the tokenisation probe draws splits; give at least 1, and a thrift above 0, up to 1")
    lm, pieces = scene.lm, Pieces(scene.lm)
    subjects = find_subjects(scene.items, [case.forget.question for case in scene.retain])
    for where in config.where:
        prompts: dict[int, list[list[int]]] = {}
        refused = 0
        for i, (item, subject) in enumerate(zip(scene.items, subjects, strict=True)):
            asked = item.question
            begin = len(asked) - len(asked.lstrip())
            ends = (subject.start, subject.end) if where == "subject" else (begin, len(asked.rstrip()))
            try:
                span = span_of(lm, asked, *ends)
            except RequestError:
                continue
            generator = random.Random(digest(scene.seed, "tokenisation", where, i))
            found, bad = other_splits(pieces, question_ids(lm, asked), span, config, generator)
            refused += bad
            if found:
                prompts[i] = found
        whole = sum(map(len, prompts.values()))
        short = f"{len(scene.cases) - len(prompts)} have no other split" if len(prompts) < len(scene.cases) else ""
        note = joined(short, f"{refused} splits refused, whose bytes were others" if refused else "")
        how = {"where": where, "splits": config.splits, "thrift": config.thrift}
        yield finding(scene, how, prompts, "asking in other tokens", note=note, detail={"splits_tried": whole})


def other_splits(
    pieces: Pieces, ids: Sequence[int], span: tuple[int, int], config: Tokenisation, generator: random.Random
) -> tuple[list[list[int]], int]:
    """Up to so many distinct other ways to write ids[first:end], in their place, and how many were refused.

    None is the tokenizer's own, and each stands for the same bytes.
    """
    first, end = span
    own, text = tuple(ids), pieces.text(ids)
    found: dict[tuple[int, ...], None] = {}
    refused: set[tuple[int, ...]] = set()
    for thrift in (config.thrift, 1.0):  # a short text has few ways of few pieces
        cuts = Cuts(pieces, ids[first:end], thrift)
        for _ in range(_ATTEMPTS * config.splits):
            new = (*ids[:first], *cuts.draw(generator), *ids[end:])
            if len(found) == config.splits or new == own or new in found or new in refused:
                continue
            if pieces.text(new) == text:
                found[new] = None
            else:
                refused.add(new)
    return [list(new) for new in found], len(refused)
