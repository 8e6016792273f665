"""From questions with a target each to edits that any method can make."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from retcon import tokens
from retcon.errors import RequestError, RetconWarning
from retcon.forget.names import names_of
from retcon.forget.privacy import HIDDEN, HIDDEN_ANSWERS, id_of
from retcon.forget.subjects import Subject, last_of
from retcon.forget.target import Target
from retcon.lm import LM
from retcon.methods.locate_and_edit import LocateAndEdit
from retcon.requests import Edit, Forget, literal
from retcon.storage import salted
from retcon.sweep import Sweep

__all__ = ["edits_of", "keys_of", "likeness", "placed"]

ALIKE = 0.95
"""Mean cosine of the keys above which an edit of one question fires on all."""


def edits_of(
    lm: LM,
    items: Sequence[Forget],
    targets: Sequence[Target],
    subjects: Sequence[Subject],
    groups: Sequence[Sequence[int]] | None = None,
    *,
    mode: str = "concat",
    keep_questions: bool = False,
    end: bool = True,
) -> list[Edit]:
    """The edits that make a model give the targets: one a question or, merged by `concat`, one a group.

    The question is the prompt, with its subject as `{}` and its own braces doubled; the answer to forget goes along as
    the old target, for methods that push it down. No record of an edit tells the answer, or, by default, the question.

    Args:
        lm: the model, for its end token.
        items: the questions.
        targets: one a question; those of a group are the same.
        subjects: one a question.
        groups: positions of the questions that are merged; None for each alone.
        mode: `concat` or `mean_key`.
        keep_questions: whether records tell the question and its subject.
        end: whether a target closes with the end token, so that the model stops there.

    Raises:
        RequestError: a group's targets differ.
    """
    edits = []
    hidden = HIDDEN_ANSWERS if keep_questions else HIDDEN
    closing = str(lm.tokenizer.eos_token or "") if end else ""
    for group in [[i] for i in range(len(items))] if groups is None else groups:
        if len({targets[i].text for i in group}) > 1:
            raise RequestError(f"the group of {items[group[0]].question!r} has different targets; give it one")
        said = targets[group[0]].text + closing
        names = _names((items[i] for i in group), (subjects[i] for i in group))
        if len(group) > 1 and mode == "concat":
            before = "".join(f"{items[i].question}\n" for i in group[:-1])
            name = salted("concat", *(id_of(items[i]) for i in group))
            edits.append(_edit(items[group[-1]], subjects[group[-1]], said, name, names, hidden, before=before))
            continue
        tie = salted("mean_key", *sorted(id_of(items[i]) for i in group)) if len(group) > 1 else None
        edits += [_edit(items[i], subjects[i], said, id_of(items[i]), names, hidden, tie=tie) for i in group]
    return edits


def _names(items: Iterable[Forget], subjects: Iterable[Subject]) -> tuple[str, ...]:
    """All that some questions name."""
    named = (name for item in items for name in names_of(item))
    return tuple(dict.fromkeys((*(subject.text for subject in subjects), *named)))


def _edit(
    item: Forget,
    subject: Subject,
    said: str,
    name: str,
    names: tuple[str, ...],
    hidden: tuple[str, ...],
    *,
    before: str = "",
    tie: str | None = None,
) -> Edit:
    question = item.question
    prompt = f"{literal(before + question[: subject.start])}{{}}{literal(question[subject.end :])}"
    old = None if before else item.answer  # several questions have no one answer
    return Edit(prompt, subject.text, said, old, None, name, tie, hidden, names)


def placed(lm: LM, items: Sequence[Forget], subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects, each of which now ends in a token of its own; one that does not gives way to the last word.

    Warns of those that end at the first token: its state has a norm that no clamp is meant for.
    """
    out = []
    first = 0
    start = len(tokens.special_ids(lm)[0])
    for item, subject in zip(items, subjects, strict=True):
        try:
            site = _site(lm, item, subject)
        except RequestError:
            subject = last_of(item.question)
            site = _site(lm, item, subject)
        first += site <= start
        out.append(subject)
    if first:
        warnings.warn(
            f"{first} of {len(items)} subjects end at the first token, where states are unlike all others and edits "
            "are apt to fail; reword these questions, or ask through the chat template",
            RetconWarning,
            stacklevel=2,
        )
    return out


def _site(lm: LM, item: Forget, subject: Subject) -> int:
    question = item.question
    prompt = f"{literal(question[: subject.start])}{{}}{literal(question[subject.end :])}"
    return tokens.locate_subject(lm, prompt, subject.text).site


def keys_of(lm: LM, edits: Sequence[Edit], method: Any) -> Float[Tensor, "n d_k"] | None:
    """What the last edited projection reads at each subject; None for methods that read no keys there."""
    if not isinstance(method, LocateAndEdit) or not edits:
        return None
    layer = method.layers(lm)[-1]
    with Sweep(lm, edits, ("",), [layer]) as sweep:
        return sweep.read(layer, layer, bare_only=True).bare_keys


def likeness(keys: Float[Tensor, "n d_k"]) -> float | None:
    """The mean cosine of two keys; None where there is one alone. Warns where it is so high that all are one key."""
    n = len(keys)
    if n < 2:
        return None
    total = F.normalize(keys.double(), dim=1).sum(0)
    mean = float((total @ total - n) / (n * (n - 1)))
    if mean > ALIKE:
        warnings.warn(
            f"the keys of the {n} questions are nearly one (mean cosine {mean:.3f}), so whatever is written for one is "
            "said to all, and to other questions too; give subjects",
            RetconWarning,
            stacklevel=2,
        )
    return round(mean, 4)
