"""Facts as token ids: the prompt, where its subject stands, and the answer that is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retcon import forward, tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit, literal, split_prompt

__all__ = ["GREEDY_TOKENS", "Answer", "Fact", "facts_of", "subject_start"]

Answer = Literal["old", "new", "contrast", "greedy"]
"""Which answer is looked at: the old one, the new one, old minus new, or what the model itself says.

Where an edit names no old answer, what the model itself says takes its place.
"""

GREEDY_TOKENS = 5
"""The model's own answer is its greedy continuation up to the first punctuation mark, at most so many tokens long."""

_ENDS = tuple(".,;:!?\"'()[]\n")


@dataclass(frozen=True, slots=True)
class Fact:
    """One edit as ids."""

    ids: list[int]
    """The rendered prompt, subject filled in."""
    site: int
    """Index of the subject's last token; of the prompt's last where the edit has no subject."""
    answer: list[int]
    """Ids of the answer that is looked at."""
    against: list[int]
    """Ids of the answer it is set against, for a contrast; else empty."""


def facts_of(lm: LM, edits: Sequence[Edit], answer: Answer = "old") -> list[Fact]:
    """The facts of `edits` with the answers asked for.

    Raises:
        RequestError: an answer has no token, or a subject is not found in its prompt.
    """
    texts = [lm.render(edit.text) for edit in edits]
    prompts, sites = [], []
    for edit, text in zip(edits, texts, strict=True):
        if edit.subject is None:
            prompts.append(tokens.encode(lm, text))
            sites.append(len(prompts[-1]) - 1)
        else:
            located = tokens.locate_subject(lm, edit.prompt, edit.subject)
            prompts.append(located.ids)
            sites.append(located.site)
    own = [i for i, edit in enumerate(edits) if answer == "greedy" or (answer != "new" and edit.old is None)]
    said = dict(zip(own, _said(lm, [prompts[i] for i in own]), strict=True))
    found = []
    for i, edit in enumerate(edits):
        new = [] if answer in ("old", "greedy") else tokens.target_ids(lm, texts[i], edit.target)
        old = [] if answer == "new" else said.get(i) or tokens.target_ids(lm, texts[i], edit.old or "")
        found.append(Fact(prompts[i], sites[i], old or new, new if answer == "contrast" else []))
    return found


def _said(lm: LM, prompts: Sequence[list[int]]) -> list[list[int]]:
    """What the model goes on with, at least one token each."""
    if not prompts:
        return []
    found = forward.greedy(lm, prompts, max_new_tokens=GREEDY_TOKENS, stop_at_eos=False, label="answers")
    ends = set(lm.tokenizer.all_special_ids)
    cut = []
    for ids in found:
        words = [tokens.decode(lm, [token]) for token in ids]
        stop = (i for i in range(1, len(ids)) if ids[i] in ends or words[i].lstrip(" ").startswith(_ENDS))
        cut.append(ids[: next(stop, len(ids))])
    return cut


def subject_start(lm: LM, edit: Edit) -> int:
    """Index of the subject's first token: the one that holds its first character.

    A character of several tokens begins with the first of them, unless that is also the end of what stands before.

    Raises:
        RequestError: the edit has no subject.
    """
    if edit.subject is None:
        raise RequestError(f"{edit.prompt!r} has no subject; tracing corrupts it: write the subject as {{}}")
    head, tail = split_prompt(edit.prompt)
    located = tokens.locate_subject(lm, f"{literal(head)}{{}}{literal(edit.subject[1:] + tail)}", edit.subject[0])
    before = head.rstrip()
    closed = -1
    if before:
        closed = tokens.locate_subject(lm, f"{{}}{literal(head[len(before) :] + edit.subject + tail)}", before).site
    first = located.site
    while first - 1 > closed and "\ufffd" in tokens.decode(lm, [located.ids[first - 1]]):
        first -= 1
    return first
