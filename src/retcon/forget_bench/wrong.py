"""Wrong answers for questions whose set has none: what the same question is answered with elsewhere in the corpus.

Truth ratios, and with them forget quality, need wrong answers of the right kind. In a corpus that asks the same of many
documents, as PISTOL does, the other documents' answers are just that. They are ours: the set itself has none.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from retcon.metrics.texts import normal
from retcon.requests import ForgetCase
from retcon.storage import digest

__all__ = ["MOST", "pattern", "with_wrong_answers"]

MOST = 5
"""Wrong answers of a question."""


def with_wrong_answers(
    cases: Sequence[ForgetCase], corpus: Sequence[ForgetCase], *, seed: int = 0
) -> tuple[list[ForgetCase], int]:
    """The cases, those without wrong answers given up to five, and how many were given some.

    A case with the answer in another wording is left as it is: wrong answers would have to be in that wording too.

    Args:
        cases: what is to be judged.
        corpus: where answers to the same question are taken from.
        seed: of the choice.
    """
    answers: dict[str, dict[tuple[str, ...], str]] = {}
    for case in corpus:
        answers.setdefault(pattern(case), {}).setdefault(normal(case.forget.answer), case.forget.answer)
    found, given = [], 0
    for case in cases:
        item = case.forget
        right = {normal(text) for text in (item.answer, *item.aliases)}
        others = [text for words, text in answers.get(pattern(case), {}).items() if words not in right]
        if case.perturbed_answers or case.paraphrased_answer is not None or not others:
            found.append(case)
            continue
        drawn = sorted((digest(seed, item.question, text), text) for text in others)[:MOST]
        found.append(replace(case, perturbed_answers=tuple(text for _, text in drawn)))
        given += 1
    return found, given


def pattern(case: ForgetCase) -> str:
    """A question without its parties and numbers, by which it is known in another document.

    >>> from retcon.requests import Forget
    >>> pattern(ForgetCase(Forget("What did Ada sell to Bob on 06-02-1998?", "Tea"), entities=("Ada", "Bob")))
    'What did {} sell to {} on #?'
    """
    text = case.forget.question
    for name in sorted(case.entities, key=len, reverse=True):
        text = text.replace(name, "{}")
    return re.sub(r"\d[\d\W]*\d|\d", "#", text)
