"""KnowEdit's zsRE, wiki_recent and wiki_counterfact: `prompt`, `subject`, `target_new`, `portability`, `locality` ...

EasyEdit's flat files, such as its CounterFact, are read too: a neighbour is `locality_prompt`, `locality_ground_truth`.

Zhang et al., *A Comprehensive Study of Knowledge Editing for Large Language Models* (arXiv 2401.01286).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, Edit, Probe
from retcon.sets.readers.base import Reader, Request, Row, asked_further, each, number, one, template, texts

__all__ = ["READER"]

_MARKS = ("locality", "locality_prompt", "ground_truth", "rephrase_prompt", "rephrase")
_KINDS = {"Subject_Aliasing": "alias", "Reasoning": "reasoning", "Logical_Generalization": "logical"}
_NEIGHBOURS = "Relation_Specificity"
"""Other groups of `locality` name the new answer and expect it, or the old one, again: they test no neighbour."""


def _claims(record: Mapping[str, Any]) -> bool:
    nested = isinstance(record.get("portability"), Mapping) or any(key in record for key in _MARKS)
    return isinstance(record.get("prompt"), str) and "target_new" in record and nested


def _case(row: Row, request: Request) -> Case:
    record = row.record
    subject, new = one(record, "subject"), one(record, "target_new")
    old = next(iter(texts(record.get("ground_truth"))), None)
    if old == new.strip():
        raise RequestError(f"the new and the old answer are both {old!r}, so nothing is edited")
    prompt = record["prompt"]
    edit = Edit(
        prompt if "{}" in prompt else template(prompt, subject),
        subject,
        new,
        old,
        id=f"{request.source}-{number(record, 'case_id', row.number)}",
    )
    return Case(
        edit,
        tuple(texts([record.get("rephrase_prompt"), record.get("rephrase")])),
        (
            *(probe for name, probe in _probes(record.get("locality")) if name == _NEIGHBOURS),
            *_flat(record.get("locality_prompt"), record.get("locality_ground_truth")),
        ),
        (),
        (
            *(
                Probe(probe.prompt, probe.answers, _KINDS.get(name, name.lower()))
                for name, probe in _probes(record.get("portability"))
            ),
            *asked_further(record),
        ),
        request.source,
    )


def _probes(groups: Any) -> Iterator[tuple[str, Probe]]:
    """The questions of each named group; those without an answer go."""
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        for entry in group if isinstance(group, list) else ():
            if not isinstance(entry, Mapping):
                continue
            prompts, answers = texts(entry.get("prompt")), texts(entry.get("ground_truth"))
            if answers:
                yield from ((name, Probe(prompt, tuple(answers))) for prompt in prompts)


def _flat(prompts: Any, answers: Any) -> Iterator[Probe]:
    """A neighbour with its answer, or lists of both that go together; one without an answer goes."""
    pairs = zip(prompts, answers, strict=False) if isinstance(prompts, list) and isinstance(answers, list) else ()
    for prompt, answer in pairs if isinstance(prompts, list) else [(prompts, answers)]:
        found = texts(answer)
        yield from (Probe(text, tuple(found)) for text in texts(prompt) if found)


READER = Reader(
    "knowedit", "`prompt`, `target_new` and `locality`, `locality_prompt` or `ground_truth`", _claims, each(_case)
)
