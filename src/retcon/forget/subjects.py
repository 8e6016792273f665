"""Where a question's subject stands: the place at which closed-form editors read their key.

Questions come without a subject. The first of these rules that yields a span wins, and is told:

    given      the user's, if it stands in the question
    contrast   the name, quotation, number or date that tells the questions to forget from those to keep best:
               log((df_F + .5) / (n_F + 1)) - log((df_R + .5) / (n_R + 1)),  df: questions that hold it
    entity     the last name, quotation, number or date, where there are no questions to keep
    tail       what follows the last of / about / by / for / between, up to punctuation
    word       the last word that carries meaning
    last       the last word or mark: its last token is the last token of the question

Rules look at the question alone, as it is written. Of a span that stands several times the last place counts.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from retcon.requests import Forget

__all__ = ["SOURCES", "Source", "Subject", "candidates", "find_subjects", "last_of", "telling"]

Source = Literal["given", "contrast", "entity", "tail", "word", "last"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""The rules, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A span of a question."""

    text: str
    start: int
    """Where it begins, in characters."""
    source: Source
    """The rule that found it."""

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.text)


def find_subjects(items: Sequence[Forget], retain: Sequence[str] = ()) -> list[Subject]:
    """The subject of each question.

    Args:
        items: the questions to forget.
        retain: questions to keep, to tell those from.

    >>> find_subjects([Forget("Where was Ada Lovelace born?", "London")])
    [Subject(text='Ada Lovelace', start=10, source='entity')]
    """
    questions = [item.question for item in items]
    return [_given(item) or _entity(item.question, questions, retain) or _plain(item.question) for item in items]


def _given(item: Forget) -> Subject | None:
    """The user's subject as the question writes it; None where it does not stand there."""
    if item.subject is None:
        return None
    found = _standing(item.subject, item.question, re.IGNORECASE)
    exact = [match for match in found if match.group() == item.subject]
    return _subject((exact or found)[-1], "given") if found else None


def _standing(text: str, question: str, flags: int = 0) -> list[re.Match[str]]:
    """Where a text stands in a question: as whole words; else as the beginning of one, to which an ending was added;
    and within others only in a script that sets no spaces.

    >>> [match.start() for match in _standing("Ann", "When did Ann sell the Annex to Hannah?")]
    [9]
    >>> [match.start() for match in _standing("Anna", "Kuka on Annan sisko?")], _standing("Ann", "Who is Joann?")
    ([8], [])
    """
    plain = re.escape(text)
    left = r"(?<!\w)" if re.match(r"\w", text) else ""
    right = r"(?!\w)" if re.search(r"\w$", text) else ""
    patterns = [f"{left}{plain}{right}", f"{left}{plain}"]
    if _UNSPACED.search(text):
        patterns.append(plain)
    every = (list(re.finditer(pattern, question, flags)) for pattern in patterns)
    return next((found for found in every if found), [])


def _last(text: str, question: str) -> int:
    """Where a text of the question stands for the last time, as words of their own if it ever does."""
    found = _standing(text, question)
    return found[-1].start() if found else question.rindex(text)


def _entity(question: str, questions: Sequence[str], retain: Sequence[str]) -> Subject | None:
    """The best candidate: by contrast where there are questions to keep, else the last; the longer of two."""
    spans = candidates(question)
    if not spans:
        return None
    place = {span: (span[1], span[1] - span[0]) for span in spans}
    if not retain:
        start, end = max(spans, key=place.__getitem__)
        return Subject(question[start:end], start, "entity")

    def score(span: tuple[int, int]) -> tuple[float, int, int]:
        text = question[slice(*span)]
        ours, theirs = (sum(text in other for other in those) for those in (questions, retain))
        contrast = math.log((ours + 0.5) / (len(questions) + 1)) - math.log((theirs + 0.5) / (len(retain) + 1))
        return contrast, *place[span]

    start, end = max(spans, key=score)
    return Subject(question[start:end], start, "contrast")


def _plain(question: str) -> Subject:
    """The rules for questions that name nothing."""
    after = [match.end() for match in _BEFORE_TAIL.finditer(question)]
    if after:
        tail = re.compile(r"[^.,;:!?()\[\]\"“”]+").match(question, after[-1])
        if tail and any(word.casefold() not in _EMPTY for word in _WORD.findall(tail.group())):
            text = tail.group().strip()
            return Subject(text, question.index(text, after[-1]), "tail")
    words = [match for match in _WORD.finditer(question) if match.group().casefold() not in _EMPTY]
    if words:
        return _subject(words[-1], "word")
    return last_of(question)


def last_of(question: str) -> Subject:
    """The last word or mark of a question."""
    return _subject(list(re.finditer(r"\w+|[^\w\s]+", question))[-1], "last")


def candidates(question: str) -> list[tuple[int, int]]:
    """Quotations, names, numbers, dates and codes of a question as (start, end), each at its last place.

    A run of names that `and` joins is one candidate and several, except after `between`, where it is several.
    """
    found = [match.span(1) for pattern in _QUOTED for match in pattern.finditer(question)]
    for start, end in _names(question):
        parts = list(_parts(question, start, end))
        between = question[:start].rstrip().casefold().endswith(("between", "both"))
        found += parts if between and len(parts) > 1 else [(start, end), *parts]
    found += [match.span() for match in _DATED.finditer(question)]
    texts = {question[start:end].strip(): None for start, end in found}
    last = ((_last(text, question), len(text)) for text in texts if any(map(str.isalnum, text)))
    return sorted({(start, start + length) for start, length in last})


def telling(word: str) -> bool:
    """Whether a word tells something: it is none of those in all texts, and no mere initial.

    >>> [word for word in ("Quim", "SA", "the", "May", "mill", "44", "1999") if telling(word)]
    ['Quim', 'mill', '1999']
    """
    return len(word) > 2 and word.casefold() not in _EMPTY


def _names(question: str) -> Iterator[tuple[int, int]]:
    """Runs of capitalised words, without a word that is capital only because a sentence begins with it."""
    for match in _RUN.finditer(question):
        start, end = match.span()
        while (first := _WORD.match(question, start)) and first.group().casefold() in _EMPTY and first.end() <= end:
            rest = re.compile(r"\W*").match(question, first.end())
            start = rest.end() if rest else first.end()
            while (more := _JOINT.match(question, start)) and more.end() <= end:
                start = more.end()
        for part in re.finditer(r".+?(?=['’]s?(?:\s|$)|$)(?:['’]s?\s*)?", question[start:end]):
            text = re.sub(r"['’]s?\s*$", "", part.group())  # a name ends where it owns something
            if any(map(str.isalpha, text)):
                yield start + part.start(), start + part.start() + len(text)


def _parts(question: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The names of a run that `and` and `&` join."""
    at = start
    for match in re.finditer(r"\s+(?:and|&)\s+", question[start:end]):
        yield at, start + match.start()
        at = start + match.end()
    if at > start:
        yield at, end


def _subject(match: re.Match[str], source: Source) -> Subject:
    return Subject(match.group(), match.start(), source)


_WORD = re.compile(r"\w+(?:['’.&-]\w+)*")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_JOINT = re.compile(r"(?:of|de|del|della|di|da|do|dos|du|van|von|der|den|la|le|el|al|bin|ibn|and|&|the)\s+")
_UPPER = "".join(filter(str.isupper, map(chr, range(0x2000))))
_CAPITAL = rf"(?:(?:[{_UPPER}]\.)+|[a-z]?[{_UPPER}][\w'’.&-]*[\w'’]|[{_UPPER}])"
_RUN = re.compile(
    rf"(?<![\w'’]){_CAPITAL}(?:(?:,?\s+(?:Inc|Ltd|LLC|Corp|Co|plc|PLC)\b\.?)|\s+(?:{_JOINT.pattern}){{0,2}}{_CAPITAL}"
    r"|\s+\d{1,4}\b(?![/.,-]\d))*"
)
"""Capitalised words one after the other, small words of names between them, a number or a company's form after them."""
_QUOTED = (
    re.compile(r"[\"“„«]([^\"“”„«»]+)[\"”“»]"),
    re.compile(r"(?<!\w)['‘]([^'‘’]+(?:['’](?=\w)[^'‘’]+)*)['’](?!\w)"),
)
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATED = re.compile(
    rf"\b\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH},? \d{{4}}\b|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}\b"
    r"|\b\w*\d[\w]*(?:[/.,:-]\w*\d\w*)*"
)
"""Dates, numbers, and codes: whatever holds a digit."""
_BEFORE_TAIL = re.compile(r"\b(?:of|about|by|for|between)\s+", re.IGNORECASE)
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        """
    a about above after again against all also am an and another any are as ask at be because been before being below
    between both but by can cannot could describe did do does doing done down during each either else ever every
    explain few for from further give given had has have having he her here hers herself him himself his how i if in
    into is it its itself just kindly know known last let list many may me might mine more most much must my myself
    name named neither no nor not now of off on once one only or other our ours out over own please provide same say
    shall she should show since so some state still such tell than that the their theirs them then there these they
    this those through to too under until up upon us very was we were what whatever when where whereabouts whether
    which whichever while who whoever whom whose why will with within without would write yes yet you your yours
    """,
    )
)
"""Words that name nothing: no sentence is about them, and none ends with them as its subject."""
