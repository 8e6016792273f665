"""Does a freely written text give the answer? Greedy text, stopped by the model itself, any alias counts.

Texts and answers are compared in the normal form of `retcon.metrics.texts`, word by word: "Paris" is not in "Parisian",
and "J.K. Rowling" is "J. K. Rowling". Nothing is cut here, least of all at a full stop: an answer may have one.
"""

import re
from collections.abc import Iterable, Sequence

from retcon.metrics.texts import ARTICLES, mentions, normal

__all__ = ["gen_contains", "gen_exact", "gen_start"]

Words = tuple[str, ...]

_BELOW = re.compile(r"\s*[-\u2212\u2013](?=\d)")
"""A number below zero, at the beginning of a text."""
_UNSPACED = 0x0E00
"""First code point (Thai) of the scripts that put no spaces between words."""


def gen_start(text: str, answers: Sequence[str]) -> float | None:
    """1.0 if the text begins with one of the answers, else 0.0; the headline of an edit. None without answers.

    Args:
        text: what the model wrote after the prompt.
        answers: the answer and its aliases.

    >>> gen_start("St. Louis, Missouri. It lies on", ["Saint Louis", "St. Louis"]), gen_start("not in Rome", ["Rome"])
    (1.0, 0.0)
    """
    return _any(_begins(text, answer) for answer in answers)


def gen_contains(text: str, answers: Sequence[str]) -> float | None:
    """1.0 if one of the answers stands anywhere in the text: lenient, for a denial names the answer too.

    >>> gen_contains("I think it is the city of Rome.", ["Rome"]), gen_contains("It is not Rome", ["Rome"])
    (1.0, 1.0)
    """
    return _any(mentions(text, answer) for answer in answers)


def gen_exact(text: str, answers: Sequence[str], *, stopped: bool) -> float | None:
    """1.0 if the text is one of the answers and nothing else, and the model stopped there by itself.

    Args:
        text: what the model wrote.
        answers: the answer and its aliases.
        stopped: whether it ended with the end token; a text that was cut off at the last token allowed did not.

    >>> gen_exact("Rome.", ["Rome"], stopped=True), gen_exact("Rome.", ["Rome"], stopped=False)
    (1.0, 0.0)
    >>> gen_exact("Rome. It is old.", ["Rome"], stopped=True)
    0.0
    """
    return _any(stopped and _is(text, answer) for answer in answers)


def _any(hits: Iterable[bool]) -> float | None:
    found = list(hits)
    return float(any(found)) if found else None


def _begins(text: str, answer: str) -> bool:
    """Whether the text begins with the answer; a date counts as it was written, and an ambiguous one in either way."""
    for wanted, written in _readings(text, answer):
        if not wanted:  # marks alone
            return bool(answer.strip()) and text.strip().casefold().startswith(answer.strip().casefold())
        if ord(wanted[-1][-1]) >= _UNSPACED:
            if "".join(written).startswith("".join(wanted)):
                return True
        elif written[: len(wanted)] == wanted:
            return True
    return False


def _is(text: str, answer: str) -> bool:
    pairs = _readings(text, answer)
    if not pairs or any(wanted for wanted, _ in pairs):
        return any(wanted == written for wanted, written in pairs)
    return bool(answer.strip()) and text.strip().casefold() == answer.strip().casefold()


def _readings(text: str, answer: str) -> list[tuple[Words, Words]]:
    """Answer and text in every form in which they may be compared: dates in either order or as they were written, and
    articles where the answer is one. None where one is below zero and the other is not."""
    if (_BELOW.match(text) is None) != (_BELOW.match(answer) is None):
        return []
    articles = not set(normal(answer)) - ARTICLES
    ways = ((True, True), (False, True), (True, False))
    return [
        (
            normal(answer, day_first=first, dated=dated, articles=articles),
            normal(text, day_first=first, dated=dated, articles=articles),
        )
        for first, dated in ways
    ]
