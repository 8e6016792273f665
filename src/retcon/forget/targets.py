"""What is said in place of the answers: families of targets, and the line that each question draws."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Literal, get_args

from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.forget.privacy import id_of
from retcon.forget.refusals import ROW, self_improved
from retcon.forget.subjects import Subject
from retcon.forget.target import Target
from retcon.forget.wording import named, wording
from retcon.lm import LM
from retcon.metrics.forgotten import leaks
from retcon.metrics.texts import mentions
from retcon.requests import Forget
from retcon.storage import digest

__all__ = ["ACCEPTED", "FAMILIES", "FIXED", "Family", "called", "contextual", "drawn", "lines", "name_of", "targets_of"]

Family = Literal["contextual", "fixed", "idk100", "refusal10", "self_improved", "avoidant", "dummy", "incorrect", "eos"]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""All families: a template that names the subject, one line for all, one of 100 or of 10 lines, what the model writes
itself, the user's own, the word `dummy`, a wrong answer, nothing but the end token. The last three are controls."""

ACCEPTED = ROW
"""The source of a target that the model wrote and the checks passed."""
FIXED = "I don't know the answer to that question."
_FILES = {"idk100": "idk100.txt", "refusal10": "refusals10.txt"}


def targets_of(
    lm: LM,
    items: Sequence[Forget],
    subjects: Sequence[Subject],
    family: str,
    *,
    seed: int = 0,
    given: Mapping[str, str | Target] | None = None,
    wrong: Sequence[Sequence[str]] = (),
    cache: bool = True,
) -> list[Target]:
    """The target of each question alone.

    Args:
        lm: the model, which writes those of `self_improved`.
        items: the questions.
        subjects: their subjects.
        family: one of `FAMILIES`.
        seed: of the lines drawn and of what the model writes.
        given: the user's own targets, by a question's id, its text or its salted id, or whole ones of an earlier run;
            they go before the family's.
        wrong: wrong answers to each question, for `incorrect`.
        cache: whether what the model has written before is taken, and what it writes now is kept.

    Raises:
        RetconError: there is no such family, or the model has no end token for `eos`.
        RequestError: a question has no target of the user, or no wrong answer, or a target tells the answer.
    """
    if family not in FAMILIES:
        raise RetconError(f"there is no family of targets {family!r}; use one of {', '.join(FAMILIES)}")
    if family == "eos" and not lm.tokenizer.eos_token:
        raise RetconError(f"{lm.name} has no end token, which is all that eos says; use another family of targets")
    own = [_given(item, family, given or {}) for item in items]
    _warn_of_unused(items, given or {})
    rest = [i for i, target in enumerate(own) if target is None]
    made: list[Target]
    if family == "self_improved":
        made = self_improved(lm, [items[i] for i in rest], seed=seed, cache=cache) if rest else []
    elif family == "incorrect":
        made = [_wrong(items[i], wrong[i] if wrong else (), seed) for i in rest]
        warnings.warn(
            "targets of the family incorrect are wrong answers, which the model will state; use it for research only",
            RetconWarning,
            stacklevel=2,
        )
    elif family == "avoidant":
        made = []
    elif family == "contextual":
        made = [contextual([items[i]], [subjects[i]], seed) for i in rest]
    else:
        made = [drawn(family, [items[i]], seed) for i in rest]
    found = dict(zip(rest, made, strict=True))
    return [target if target is not None else found[i] for i, target in enumerate(own)]


def drawn(family: str, members: Sequence[Forget], seed: int) -> Target:
    """The line of a family that some questions together draw: by the seed and their names, whatever their order.

    A line that tells an answer, as "no" does where the answer is no, is drawn only where all lines do.
    """
    return Target(_one(lines(family), members, seed), family, family)


def contextual(members: Sequence[Forget], subjects: Sequence[Subject], seed: int) -> Target:
    """A line that names the subject that all members share; the fixed one where they share none, or none is known.

    A subject that holds another wording of an answer is not named either.
    """
    shared = {subject.text for subject in subjects}
    known = all(subject.source != "last" for subject in subjects)
    if len(shared) > 1 or not known or any(mentions(min(shared), alias) for item in members for alias in item.aliases):
        return Target(FIXED, "contextual", "fixed")
    told = [named(line, min(shared)) for line in wording()["templates"]]
    return Target(_one(told, members, seed), "contextual", "template")


@cache
def lines(family: str) -> tuple[str, ...]:
    """The lines of a family that every question draws from; one empty line for `eos`."""
    if family in _FILES:
        text = resources.files("retcon").joinpath("data", _FILES[family]).read_text(encoding="utf-8")
        return tuple(text.splitlines())
    return {"fixed": (FIXED,), "dummy": ("dummy",), "eos": ("",)}[family]


def name_of(item: Forget) -> str:
    """What a question's draws go by: its id, else its text."""
    return item.question if item.id is None else item.id


def called(item: Forget) -> tuple[str, ...]:
    """The names that a target may give a question: its id, its text, its salted id."""
    return tuple(name for name in (item.id, item.question, id_of(item)) if name is not None)


def _warn_of_unused(items: Sequence[Forget], given: Mapping[str, str | Target]) -> None:
    """A target of the user that no question takes is mostly one whose question is spelt otherwise."""
    known = {name for item in items for name in called(item)} if given else set()
    unused = [name for name, target in given.items() if isinstance(target, str) and name not in known]
    if unused:
        warnings.warn(
            f"{len(unused)} of the targets given {'is' if len(unused) == 1 else 'are'} of no question here, and not "
            f"used: the first is of {unused[0]!r}; name a question by its very text or its id",
            RetconWarning,
            stacklevel=3,
        )


def _one(choice: Sequence[str], members: Sequence[Forget], seed: int) -> str:
    """The line that questions draw, of those that tell none of their answers if there are any."""
    safe = [line for line in choice if not any(leaks(line, item.answer, item.aliases) for item in members)]
    return (safe or choice)[_number(members, seed) % len(safe or choice)]


def _number(members: Sequence[Forget], seed: int) -> int:
    named = sorted(map(name_of, members))
    return int(digest(seed, named[0] if len(named) == 1 else named)[:15], 16)


def _given(item: Forget, family: str, given: Mapping[str, str | Target]) -> Target | None:
    """The user's own target of a question, or that of an earlier run."""
    known = (given.get(name) for name in (called(item) if given else ()))
    found = next((target for target in known if target is not None), None)
    if found is None:
        if family == "avoidant":
            raise RequestError(f"there is no target for {item.question!r}; add it to the targets, by question or id")
        return None
    target = Target(found, family, "given") if isinstance(found, str) else found
    if told := [answer for answer in (item.answer, *item.aliases) if mentions(target.text, answer)]:
        raise RequestError(f"the target {target.text!r} of {item.question!r} tells its answer {told[0]!r}; reword it")
    return target


def _wrong(item: Forget, wrong: Sequence[str], seed: int) -> Target:
    """A wrong answer that does not tell the right one."""
    safe = [text for text in wrong if not any(mentions(text, answer) for answer in (item.answer, *item.aliases))]
    if not safe:
        raise RequestError(
            f"{item.question!r} has no wrong answer to state; give perturbed_answers that leave the answer out, or a "
            "target of your own"
        )
    return Target(safe[_number([item], seed) % len(safe)], "incorrect", "incorrect")
