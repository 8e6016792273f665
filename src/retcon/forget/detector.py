"""Does a text decline to answer? A versioned bank of English regular expressions, with its own precision and recall.

A text refuses where one of its sentences says, in the first person or without a person, that the answer is not known or
will not be given. A text that refuses and tells the answer in another sentence still refuses (whether it leaks is
another question). A hedged answer does not: a doubt ("I'm not sure") beside a guess, or a gap that its own sentence
closes ("I don't know the day, but it was in May").
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["fixture", "quality", "refuses", "version"]


def refuses(text: str) -> bool:
    """Whether the text declines to answer.

    >>> refuses("I have no information about that harbour."), refuses("I'm not sure, but I think it was Paris.")
    (True, False)
    """
    bank = _bank()
    sentences = _sentences(text)
    guessed = any(bank.guess.search(sentence) for sentence in sentences)
    return any(bank.declined(sentence) or (not guessed and bank.doubted(sentence)) for sentence in sentences)


def version() -> int:
    """The number of the bank, which grows with every change of what `refuses` says of some text."""
    return _bank().version


def quality() -> dict[str, Any]:
    """Precision and recall on the labelled lines that ship with the package, for a report to state beside its rates.

    The expressions were written with most of these lines in sight; `fresh` gives the same of the lines that were added
    when they stood, and left as they came out.
    """
    rows = fixture()
    return {"version": version(), **_rates(rows), "fresh": _rates([row for row in rows if row["fresh"]])}


def _rates(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    judged = [(bool(row["refuses"]), refuses(row["text"])) for row in rows]
    hits = sum(wanted and found for wanted, found in judged)
    positives, said = sum(wanted for wanted, _ in judged), sum(found for _, found in judged)
    return {
        "precision": hits / said if said else None,
        "recall": hits / positives if positives else None,
        "positive": positives,
        "negative": len(judged) - positives,
    }


@cache
def fixture() -> tuple[dict[str, Any], ...]:
    """The labelled lines: `text`, whether it `refuses`, and whether the bank was written without it (`fresh`)."""
    return tuple(json.loads(line) for line in _shipped("refusals.jsonl").splitlines())


@dataclass(frozen=True, slots=True)
class _Bank:
    """The compiled expressions; each sees one sentence as `_sentences` gives it."""

    version: int
    declines: tuple[re.Pattern[str], ...]
    doubts: re.Pattern[str]
    intro: re.Pattern[str]
    fronted: re.Pattern[str]
    but: re.Pattern[str]
    guess: re.Pattern[str]
    answers: re.Pattern[str]
    offers: re.Pattern[str]

    def declined(self, sentence: str) -> bool:
        """Whether the sentence refuses, and does not answer after all."""
        found = (pattern.search(sentence) for pattern in self.declines)
        return any(match is not None and not self._turned(sentence[match.end() :]) for match in found)

    def doubted(self, sentence: str) -> bool:
        """Whether the sentence doubts, and answers neither before nor after."""
        match = self.doubts.search(sentence)
        if match is None:
            return False
        turn = self.but.search(sentence, match.end())
        if turn is not None and self.offers.search(sentence, turn.end()) is None:
            return False
        before = self.intro.sub("", sentence[: match.start()]).strip(" ,;:-")
        return not before or self.fronted.match(before) is not None

    def _turned(self, rest: str) -> bool:
        turn = self.but.search(rest)
        if turn is None or self.offers.search(rest, turn.end()) is not None:
            return False
        return any(pattern.search(rest, turn.end()) is not None for pattern in (self.guess, self.answers))


@cache
def _bank() -> _Bank:
    table = tomllib.loads(_shipped("refusals.toml"))
    parts: dict[str, str] = table.pop("parts")

    def compiled(pattern: str) -> re.Pattern[str]:
        for name, value in parts.items():
            pattern = pattern.replace(f"<{name}>", value)
        return re.compile(pattern)

    declines = tuple(compiled(pattern) for pattern in table.pop("declines"))
    number = int(table.pop("version"))
    return _Bank(number, declines, **{name: compiled(pattern) for name, pattern in table.items()})


def _shipped(name: str) -> str:
    return resources.files("retcon").joinpath("forget", "data", name).read_text(encoding="utf-8")


_MARKS = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "."})
_QUOTED = re.compile(r"\"[^\"]*\"|(?<!\w)'[^']{3,}?(?:'s [^']*)*'(?!\w)")


def _sentences(text: str) -> list[str]:
    """In lower case, with plain marks, without what stands in quotes (but for a text that is one quotation)."""
    plain = " ".join(text.translate(_MARKS).split()).lower().strip()
    bare = _QUOTED.sub(" ", plain)
    if not re.search(r"[^\W\d_]", bare):
        bare = plain.strip("\"'")
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", bare) if part.strip()]
