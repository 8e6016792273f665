"""What all readers share: a row with its place, what is asked for, and how rows of one record each are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, ForgetCase, Probe, literal

__all__ = ["Item", "Reader", "Request", "Row", "asked_further", "each", "number", "one", "template", "texts"]

Item = Case | ForgetCase


@dataclass(frozen=True, slots=True)
class Row:
    """A record and where it stands."""

    place: str
    """For complaints: "counterfact.json line 12"."""
    record: Mapping[str, Any]
    number: int
    """Position in its file, from 0; ids are made of it where a format has none."""
    stem: str
    """The file's name up to its first dot."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a reader."""

    source: str
    """What the items say of where they come from, and how their ids begin."""
    split: str | None
    limit: int | None
    seed: int
    notes: list[str] = field(default_factory=list)
    """What the reader has to say of the whole."""


Read = Iterator[tuple[str, Item | RequestError]]
"""Place, with the item or with what is wrong there; no more good items than the limit."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One format."""

    name: str
    fields: str
    """What it is recognised by, for people."""
    claims: Callable[[Mapping[str, Any]], bool]
    """Whether a record is of this format."""
    read: Callable[[Sequence[Row], Request], Read]


def each(make: Callable[[Row, Request], Item]) -> Callable[[Sequence[Row], Request], Read]:
    """A reader of formats in which each record is one item."""

    def read(rows: Sequence[Row], request: Request) -> Read:
        good = 0
        for row in rows:
            if good == request.limit:
                return
            try:
                item = make(row, request)
            except RequestError as error:
                yield row.place, error
            else:
                good += 1
                yield row.place, item

    return read


def one(record: Mapping[str, Any], *path: str) -> str:
    """The text at a path of keys.

    Raises:
        RequestError: naming what is missing or no text.
    """
    value: Any = record
    for at, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            raise RequestError(f'"{".".join(path[: at + 1])}" is missing')
        value = value[key]
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f'"{".".join(path)}" is {"empty" if value in ("", None) else "no text"}')
    return value


def texts(value: Any) -> list[str]:
    """All texts of a value however its lists are nested, in order, each once; empty ones and what is no text go.

    >>> texts([["Berlin", "Berlin, Germany"], "Berlin", "", None])
    ['Berlin', 'Berlin, Germany']
    """
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
        return list(dict.fromkeys(text for part in value for text in texts(part)))
    return []


def asked_further(record: Mapping[str, Any]) -> tuple[Probe, ...]:
    """The question that EasyEdit's files add as `portability`; it needs the edited fact and another one.

    >>> asked_further({"portability": {"New Question": "In which state is it?", "New Answer": "Michigan"}})
    (Probe(prompt='In which state is it?', answers=('Michigan',), kind='reasoning'),)
    """
    found = record.get("portability")
    if not isinstance(found, Mapping):
        return ()
    answers = tuple(texts(found.get("New Answer")))
    return tuple(Probe(question, answers, "reasoning") for question in texts(found.get("New Question")) if answers)


def number(record: Mapping[str, Any], key: str, otherwise: int) -> str:
    """The number or name of a record, as text."""
    value = record.get(key)
    return str(value) if isinstance(value, int | str) and str(value).strip() else str(otherwise)


def template(prompt: str, subject: str) -> str:
    """A prompt with `{}` in the place of the subject's first occurrence.

    Raises:
        RequestError: the subject is not in it.

    >>> template("Who wrote {Hamlet}?", "Hamlet")
    'Who wrote {{{}}}?'
    """
    before, found, after = prompt.partition(subject)
    if not found:
        raise RequestError(f"the prompt {prompt!r} does not name its subject {subject!r}")
    return literal(before) + "{}" + literal(after)
