"""PARAREL: facts (`sub_label`, `obj_label`) and templates (`pattern`) by relation, or both in one record (ours).

Elazar et al., *Measuring and Improving Consistency in Pretrained Language Models*, TACL 2021 (arXiv 2102.01017).

They are facts, not edits, so each new answer is drawn here, by the seed, from the objects that its relation has
elsewhere. The limit takes a seeded sample; neighbours are facts of the same relation and object that are not in the
sample, so without a limit there are none.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, Edit, Probe, split_prompt
from retcon.sets.drawing import draw, shuffled
from retcon.sets.readers.base import Read, Reader, Request, Row, one, texts

__all__ = ["READER"]

NEIGHBOURS = 10
"""At most so many for a case, as CounterFact has."""

_PATTERN = re.compile(r"(?P<before>.*?\[X\].*?)\s*\[Y\]\s*\.?\s*")


def _claims(record: Mapping[str, Any]) -> bool:
    both = {"subject", "object", "relation", "template"} <= record.keys()
    return both or {"sub_label", "obj_label"} <= record.keys() or "pattern" in record


@dataclass(frozen=True, slots=True)
class _Fact:
    place: str
    subject: str
    relation: str
    object: str
    templates: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.subject.join(split_prompt(self.templates[0]))


def _read(rows: Sequence[Row], request: Request) -> Read:
    patterns = _patterns(rows)
    facts: list[_Fact] = []
    for row in rows:
        if "pattern" in row.record:
            continue
        try:
            facts.append(_fact(row, patterns))
        except RequestError as error:
            yield row.place, error
    true: dict[tuple[str, str], set[str]] = defaultdict(set)  # of a subject and relation
    objects: dict[str, set[str]] = defaultdict(set)  # of a relation
    for fact in facts:
        true[fact.subject, fact.relation].add(fact.object)
        objects[fact.relation].add(fact.object)
    choices = {relation: sorted(found) for relation, found in objects.items()}
    sample = facts
    if request.limit is not None:
        keyed = {(fact.subject, fact.relation): fact for fact in reversed(facts)}
        sample = [keyed[key] for key in shuffled(keyed, request.seed, "sample")]
    chosen: dict[str, _Fact] = {}  # by text
    for fact in sample:
        if len(chosen) == request.limit:
            break
        wrong = _unfit(fact, chosen, choices[fact.relation], true[fact.subject, fact.relation])
        if wrong is None:
            chosen[fact.text] = fact
        else:
            yield fact.place, RequestError(wrong)
    yield from _edited(facts, chosen, choices, true, request)


def _unfit(fact: _Fact, chosen: Mapping[str, _Fact], choices: Sequence[str], true: set[str]) -> str | None:
    if fact.text in chosen:
        return f"{fact.text!r} stands at {chosen[fact.text].place} already"
    if len(choices) == len(true):
        return f"{fact.relation} has no other object that could be the new answer for {fact.subject!r}"
    return None


def _edited(
    facts: Sequence[_Fact],
    chosen: Mapping[str, _Fact],
    choices: Mapping[str, Sequence[str]],
    true: Mapping[tuple[str, str], set[str]],
    request: Request,
) -> Read:
    edited = {(fact.subject, fact.relation) for fact in chosen.values()}
    rest: dict[tuple[str, str], list[_Fact]] = defaultdict(list)
    for fact in facts:
        key = fact.subject, fact.relation
        if key not in edited and fact.text not in chosen and len(true[key]) == 1:
            rest[fact.relation, fact.object].append(fact)
    for fact in chosen.values():
        key = fact.subject, fact.relation
        drawn = _drawn(choices[fact.relation], true[key], request.seed, *key)
        name = "-".join((request.source, *key))
        edit = Edit(fact.templates[0], fact.subject, drawn, fact.object, fact.relation, name)
        near = rest[fact.relation, fact.object][:NEIGHBOURS]
        paraphrases = tuple(fact.subject.join(split_prompt(template)) for template in fact.templates[1:])
        neighbours = tuple(Probe(other.text, (other.object,)) for other in near)
        yield fact.place, Case(edit, paraphrases, neighbours, source=request.source)


def _drawn(choices: Sequence[str], true: set[str], seed: int, *key: str) -> str:
    """An object that is not true of the subject: further draws where the first ones are."""
    n = 0
    while (found := draw(choices, seed, *key, n)) in true:
        n += 1
    return found


def _patterns(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Relation (the file's name) -> its templates that end with the object, cut before it."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        match = _PATTERN.fullmatch(str(row.record.get("pattern", "")))
        if match is not None and match["before"].count("[X]") == 1:
            found[row.stem].append(" ".join(match["before"].replace("[X]", "{}").split()))
    return {stem: tuple(dict.fromkeys(templates)) for stem, templates in found.items()}


def _fact(row: Row, patterns: Mapping[str, tuple[str, ...]]) -> _Fact:
    record = row.record
    if "sub_label" not in record:
        templates = (one(record, "template"), *texts(record.get("paraphrase_templates")))
        names = (one(record, "subject"), one(record, "relation"), one(record, "object"))
        return _Fact(row.place, *names, templates)
    if row.stem not in patterns:
        raise RequestError(
            f"{row.stem} comes without templates that end with the object; give the folder that has its patterns "
            "as JSONL too"
        )
    return _Fact(row.place, one(record, "sub_label"), row.stem, one(record, "obj_label"), patterns[row.stem])


READER = Reader("pararel", "`sub_label`, `obj_label` or `subject`, `object`, `template`", _claims, _read)
