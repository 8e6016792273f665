"""The small set that ships with Retcon: cases composed from tables of common knowledge, so that they agree by making.

`data/facts.toml` holds what is true: relations with their subjects and answers, and maps that only second hops ask for.
From it and a seed follows, by hashes alone (so on every machine alike):

- which subjects of a relation are never edited: a third of those that share an answer, and at least a fifth of all.
  They are the neighbours, those of the same old answer first;
- each edit's new answer: another answer of the relation that is not true of the subject;
- its two-hop questions: what the tables say of the new answer, where no edit of the set changes that, and where it is
  not what they say of the old one. So they hold after one edit and after all of them.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, Edit, Probe
from retcon.sets.drawing import draw, shuffled

__all__ = ["Relation", "Tables", "compose", "tables"]

NEIGHBOURS = 8
"""At most so many for a case."""

_ENTRY = re.compile(r"(?P<subject>[^()]+?)\s*(?:\((?P<also>[^()]+)\))?")


@dataclass(frozen=True, slots=True)
class Relation:
    """A table of one relation, and how it is put into words; `{}` is the subject."""

    name: str
    prompt: str
    paraphrases: tuple[str, ...]
    openings: tuple[str, ...]
    answers: Mapping[str, str]
    """Subject -> answer."""
    also: Mapping[str, frozenset[str]]
    """Subject -> other answers that are true of it."""
    hops: tuple[tuple[str, tuple[str, ...]], ...]
    """A question about what the answer leads to, and the relations or maps that tell."""


@dataclass(frozen=True, slots=True)
class Tables:
    """All of `facts.toml`."""

    relations: Mapping[str, Relation]
    maps: Mapping[str, Mapping[str, str]]
    """Name -> subject -> answer, for second hops alone."""
    aliases: Mapping[str, tuple[str, ...]]
    """Other wordings of an answer."""
    articles: frozenset[str]
    """Names that a sentence puts "the" before."""

    def names(self, answer: str) -> tuple[str, ...]:
        """An answer and its other wordings."""
        return (answer, *self.aliases.get(answer, ()))

    def said(self, subject: str) -> str:
        """A subject as it stands within a sentence."""
        return f"the {subject}" if subject in self.articles else subject


@cache
def tables() -> Tables:
    """The tables that ship with Retcon."""
    return parse(tomllib.loads((resources.files("retcon.sets") / "data/facts.toml").read_text("utf-8")))


def parse(raw: Mapping[str, Any]) -> Tables:
    """Tables from the data of a TOML file.

    Raises:
        RequestError: a line is malformed, or a subject stands twice in one table.
    """
    relations = {}
    for name, table in raw["relations"].items():
        answers, also = _facts(table["facts"], name)
        hops = tuple((hop["prompt"], tuple(hop["via"])) for hop in table.get("hops", ()))
        texts = tuple(table["paraphrases"]), tuple(table["openings"])
        relations[name] = Relation(name, table["prompt"], *texts, answers, also, hops)
    maps = {name: _facts(text, name)[0] for name, text in raw.get("maps", {}).items()}
    aliases = {answer: tuple(others) for answer, others in raw.get("aliases", {}).items()}
    return Tables(relations, maps, aliases, frozenset(raw.get("the", ())))


def _facts(text: str, name: str) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Lines "answer: subject, subject (also true/also true)"."""
    answers: dict[str, str] = {}
    also: dict[str, frozenset[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        answer, colon, rest = line.partition(": ")
        for part in rest.split(", "):
            match = _ENTRY.fullmatch(part.strip())
            if not colon or match is None:
                raise RequestError(f'{name}: {line!r} is no line of facts; write "answer: subject, subject"')
            subject = match["subject"]
            if subject in answers:
                raise RequestError(f"{name}: {subject!r} stands twice; keep one, and put what is also true in ( )")
            answers[subject] = answer
            also[subject] = frozenset(match["also"].split("/")) if match["also"] else frozenset()
    return answers, also


def compose(seed: int = 0, known: Tables | None = None) -> list[Case]:
    """All cases, relations mixed, in an order that follows from the seed too.

    Args:
        seed: of new answers, of which subjects are edited, and of the order.
        known: the tables; those that ship with Retcon by default.
    """
    known = known or tables()
    kept = {name: _kept(relation, seed) for name, relation in known.relations.items()}
    facts = [
        (name, subject)
        for name, relation in known.relations.items()
        for subject in relation.answers
        if subject not in kept[name]
    ]
    return [_Composer(known, kept, seed).case(*fact) for fact in shuffled(facts, seed, "order")]


def _kept(relation: Relation, seed: int) -> frozenset[str]:
    """The subjects that are not edited."""
    order = shuffled(relation.answers, seed, "kept", relation.name)
    groups: dict[str, list[str]] = {}
    for subject in order:
        groups.setdefault(relation.answers[subject], []).append(subject)
    kept = [subject for group in groups.values() for subject in group[: len(group) // 3]]
    rest = [subject for subject in order if subject not in kept]
    return frozenset(kept + rest[: max(0, len(order) // 5 - len(kept))])


@dataclass(frozen=True, slots=True)
class _Composer:
    known: Tables
    kept: Mapping[str, frozenset[str]]
    """Relation -> the subjects that are not edited."""
    seed: int

    def case(self, name: str, subject: str) -> Case:
        relation = self.known.relations[name]
        old = relation.answers[subject]
        new = self._target(relation, subject)
        text = self.known.said(subject)
        slug = re.sub(r"\W+", "-", subject.casefold()).strip("-")
        return Case(
            Edit(relation.prompt, text, new, old, relation=name, id=f"builtin-{name}-{slug}"),
            paraphrases=tuple(prompt.replace("{}", text) for prompt in relation.paraphrases),
            neighbours=tuple(self._neighbours(relation, subject, new)),
            generation_prompts=tuple(prompt.replace("{}", text) for prompt in relation.openings),
            portability=tuple(self._hops(relation, subject, new)),
            source="builtin",
            aliases=self.known.names(new)[1:],
        )

    def _target(self, relation: Relation, subject: str) -> str:
        """The first of three draws from which a second hop follows, else the first."""
        true = relation.also[subject] | {relation.answers[subject]}
        others = sorted(set(relation.answers.values()) - true)
        drawn = [draw(others, self.seed, "target", relation.name, subject, n) for n in range(3)]
        return next((answer for answer in drawn if any(self._hops(relation, subject, answer))), drawn[0])

    def _hops(self, relation: Relation, subject: str, new: str) -> Iterator[Probe]:
        for prompt, via in relation.hops:
            found, before = self._told(via, new), self._told(via, relation.answers[subject], though_edited=True)
            if found is not None and found != before:
                text = prompt.replace("{}", self.known.said(subject))
                yield Probe(text, self.known.names(found), kind="two-hop")

    def _told(self, via: tuple[str, ...], subject: str, though_edited: bool = False) -> str | None:
        """What the tables say of a subject, by default only where no edit of the set changes it."""
        for name in via:
            if name in self.known.maps and subject in self.known.maps[name]:
                return self.known.maps[name][subject]
            if name in self.known.relations and (though_edited or subject in self.kept[name]):
                found = self.known.relations[name].answers.get(subject)
                if found is not None:
                    return found
        return None

    def _neighbours(self, relation: Relation, subject: str, new: str) -> Iterator[Probe]:
        """Subjects that are not edited, those of the same old answer first."""
        old = relation.answers[subject]
        order = shuffled(sorted(self.kept[relation.name]), self.seed, "neighbours", relation.name, subject)
        others = [other for other in order if new not in relation.also[other] | {relation.answers[other]}]
        others.sort(key=lambda other: relation.answers[other] != old)
        for other in others[:NEIGHBOURS]:
            prompt = relation.prompt.replace("{}", self.known.said(other))
            yield Probe(prompt, self.known.names(relation.answers[other]))
