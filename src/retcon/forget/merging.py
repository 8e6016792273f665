"""Query merging: several questions to forget share one edit [our reconstruction].

The idea is published (Editing as Unlearning, arXiv 2505.19855): a refusal, unlike a fact, can be the target of many
questions, and fewer edits wear a model out less. How questions are merged is not, so there are two readings, and
results carry their names:

    concat     the members' questions one after the other are one prompt, whose subject is the last member's
    mean_key   prompts stay apart and share one shift:  z_i = h0_i + delta,  delta = argmin mean_i J_i(delta)
               ROME then writes one rank-one change for the means of keys and targets, the others a column a member

Either way a group has one target, and what comes of it is judged on each question alone.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from retcon import forward, tokens
from retcon.errors import RequestError, RetconError
from retcon.forget.checks import CHECKS
from retcon.forget.subjects import Subject
from retcon.forget.target import Target
from retcon.forget.targets import ACCEPTED, FIXED, contextual, drawn, name_of
from retcon.lm import LM
from retcon.requests import Forget
from retcon.storage import digest

__all__ = ["LONGEST", "MODES", "WAYS", "Mode", "Way", "cut_long", "grouped", "merged_text", "shared_target", "why_not"]

Mode = Literal["concat", "mean_key"]
MODES: tuple[Mode, ...] = get_args(Mode)
Way = Literal["group", "order", "random", "key"]
WAYS: tuple[Way, ...] = get_args(Way)
"""Which questions go together: of one group or else one subject; in order; any; of like keys."""

LONGEST = 512
"""Tokens of a merged prompt at most."""

_OF_EACH = ("no_leak", "names_topic", "nothing_invented")
"""Checks that a refusal which several questions share must pass for each of them."""
_WHY_NOT = {
    "grace": "edits of one answer share a value there already, and there is no shift to share",
    "wise": "it trains its memory on each edit and has no shift to share",
    "ultraedit": "it seeks no target that edits could share",
}


def why_not(method: Any, mode: str) -> str | None:
    """Why a method cannot merge questions in this way, "n/a: ..."; None where it can."""
    if getattr(method, "unlearns", False):
        return f"n/a: {method.name}: it learns from each question's own answer, and merged questions have none"
    if mode == "concat" or getattr(method, "shares", False):
        return None
    return f"n/a: {method.name}: {_WHY_NOT.get(method.name, 'it seeks no shift that edits could share')}"


def grouped(
    items: Sequence[Forget],
    subjects: Sequence[Subject],
    size: int | None,
    way: str,
    *,
    seed: int = 0,
    keys: Float[Tensor, "n d_k"] | None = None,
) -> list[list[int]]:
    """Positions of the questions of each group; in order of their first, as are the members of each.

    With `group`, those of one group, or, without one, of one subject; with `order`, neighbours; with `random`, any, by
    the seed; with `key`, each group's first with those of the keys nearest to its own. Then groups are cut to the size.

    Args:
        items: the questions.
        subjects: their subjects.
        size: the most questions of a group; None for no limit.
        way: one of `WAYS`.
        seed: of a random grouping.
        keys: the key of each question, for `key`.

    Raises:
        RetconError: the way or the size is none.
    """
    if way not in WAYS:
        raise RetconError(f"questions cannot be merged by {way!r}; use one of {', '.join(WAYS)}")
    if size is not None and size < 1:
        raise RetconError(f"{size} questions cannot be merged; give 1 or more, or all")
    if size == 1:
        return [[i] for i in range(len(items))]
    whole = list(range(len(items)))
    parts = [whole]
    if way == "group":
        together: dict[tuple[str, str], list[int]] = {}
        for i, (item, subject) in enumerate(zip(items, subjects, strict=True)):
            belongs = ("subject", subject.text.casefold()) if item.group is None else ("group", item.group)
            together.setdefault(belongs, []).append(i)
        parts = list(together.values())
    elif way == "random":
        parts = [sorted(whole, key=lambda i: digest(seed, name_of(items[i]), i))]
    elif way == "key" and size is not None:
        if keys is None:
            raise RetconError("this method reads no keys at subjects to merge questions by; use another way")
        parts = _nearest(keys, size)
    most = size or len(items)
    cut = [part[start : start + most] for part in parts for start in range(0, len(part), most)]
    return sorted(sorted(part) for part in cut)


def _nearest(keys: Float[Tensor, "n d_k"], size: int) -> list[list[int]]:
    """The first question left with those nearest to it, until none is left."""
    unit = F.normalize(keys.double(), dim=1)
    left = list(range(len(keys)))
    groups = []
    while left:
        first, *rest = left
        alike = (unit[rest] @ unit[first]).tolist()
        order = sorted(range(len(rest)), key=lambda j: (-alike[j], j))
        groups.append([first, *(rest[j] for j in order[: size - 1])])
        left = [i for i in rest if i not in groups[-1]]
    return groups


def cut_long(lm: LM, items: Sequence[Forget], groups: Sequence[list[int]], most: int = LONGEST) -> list[list[int]]:
    """The groups, those cut whose merged prompt has more tokens than `most`."""
    out: list[list[int]] = []
    for group in groups:
        part: list[int] = []
        for i in group:
            if part and len(tokens.encode(lm, lm.render(merged_text(items, [*part, i])))) > most:
                out.append(part)
                part = []
            part.append(i)
        out.append(part)
    return out


def merged_text(items: Sequence[Forget], members: Sequence[int]) -> str:
    """The questions of a group as one prompt, a line each."""
    return "\n".join(items[i].question for i in members)


def shared_target(
    lm: LM,
    items: Sequence[Forget],
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    members: Sequence[int],
    family: str,
    seed: int,
) -> Target:
    """The one target of a group.

    Lines are drawn for the group as a whole; a template names the subject that all members share. Of what the model
    wrote, that is taken which is the likeliest after the members' questions, of those that for every member tell no
    answer, name the topic and invent nothing; the fixed line where there is none.

    Raises:
        RequestError: the members' own targets differ.
    """
    if len(members) == 1:
        return targets[members[0]]
    mine, asked = [targets[i] for i in members], [items[i] for i in members]
    if any(target.source in ("given", "incorrect") for target in mine):
        if len({target.text for target in mine}) > 1:
            raise RequestError(
                f"{asked[0].question!r} and {len(asked) - 1} more are one group with different targets; give them one "
                "target, or do not merge them"
            )
        return mine[0]
    if family != "self_improved" and not any(target.source == ACCEPTED for target in mine):
        if family == "contextual":
            return contextual(asked, [subjects[i] for i in members], seed)
        return drawn(family, asked, seed)
    fitting = [target for target in mine if target.source == ACCEPTED and _fits(target.text, asked)]
    if not fitting:
        return Target(FIXED, family, "fixed")
    texts = list(dict.fromkeys(target.text for target in fitting))
    likeliest = min(range(len(texts)), key=_losses(lm, asked, texts).__getitem__)
    return next(target for target in fitting if target.text == texts[likeliest])


def _fits(text: str, members: Sequence[Forget]) -> bool:
    """Whether a refusal serves every member: it passes the checks that look at the question."""
    return all(CHECKS[name](item, text).ok for item in members for name in _OF_EACH)


def _losses(lm: LM, members: Sequence[Forget], texts: Sequence[str]) -> list[float]:
    """Mean negative log-likelihood per token of each text, over the members' questions."""
    rendered = [lm.render(item.question) for item in members]
    asked = [(tokens.encode(lm, text), [tokens.target_ids(lm, text, said) for said in texts]) for text in rendered]
    scored = forward.score(lm, asked)
    losses = [[-sum(one.logprobs) / len(one.logprobs) for one in row] for row in scored]
    mean: list[float] = torch.tensor(losses).mean(0).tolist()
    return mean
