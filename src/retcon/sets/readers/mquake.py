"""MQuAKE: `requested_rewrite` (a list) with multi-hop `questions` whose answer needs all edits of the case.

Zhong, Wu, Manning, Potts, Chen, *MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions*, EMNLP
2023 (arXiv 2305.14795).

Each distinct edit becomes one case. A MQuAKE case's questions hang on its first edit and hold once **all** edits are
applied. A MQuAKE case that contradicts an earlier one is left out whole; the limit counts MQuAKE cases.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, Edit, Probe
from retcon.sets.readers.base import Read, Reader, Request, Row, number, one, texts
from retcon.sets.readers.counterfact import answer_text

__all__ = ["READER"]


def _claims(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("requested_rewrite"), list) and "questions" in record


def _read(rows: Sequence[Row], request: Request) -> Read:
    found: dict[str, tuple[str, Case]] = {}  # text of the edit -> where it stands first, and its case
    facts: dict[tuple[str | None, str | None], str] = {}  # subject, relation -> text
    bad: list[tuple[str, RequestError]] = []
    good = 0
    for row in rows:
        if good == request.limit:
            break
        try:
            cases = _cases(row, request)
            for case in cases:
                _agrees(case.edit, found, facts)
        except RequestError as error:
            bad.append((row.place, error))
            continue
        good += 1
        for case in cases:
            text = case.edit.text
            place, earlier = found.setdefault(text, (row.place, case))
            if earlier is not case:
                merged = dataclasses.replace(earlier, portability=earlier.portability + case.portability)
                found[text] = place, merged
            facts.setdefault((case.edit.subject, case.edit.relation), text)
    if good:
        request.notes.append(
            f"{good} multi-hop cases give {len(found)} distinct edits; a multi-hop question needs all edits of its "
            "case, so apply all of them together before asking"
        )
    yield from bad
    yield from found.values()


def _cases(row: Row, request: Request) -> list[Case]:
    """One case for each edit, the multi-hop questions on the first."""
    record = row.record
    rewrites = record["requested_rewrite"]
    if not rewrites:
        raise RequestError('"requested_rewrite" is empty')
    answers = (one(record, "new_answer"), *texts(record.get("new_answer_alias")))
    hops = len(record.get("new_single_hops") or record.get("single_hops") or ())
    kind = f"{hops}-hop" if hops else "multi-hop"
    questions = tuple(Probe(question, answers, kind) for question in texts(record["questions"]))
    name = f"{request.source}-{number(record, 'case_id', row.number)}"
    cases = []
    for n, rewrite in enumerate(rewrites):
        subject, relation = one(rewrite, "subject"), rewrite.get("relation_id")
        targets = answer_text(rewrite, "target_new"), answer_text(rewrite, "target_true")
        edit = Edit(one(rewrite, "prompt"), subject, *targets, relation, f"{name}-{n}")
        other = tuple(texts(rewrite.get("question")))
        cases.append(Case(edit, other, portability=() if n else questions, source=request.source))
    return cases


def _agrees(
    edit: Edit, found: Mapping[str, tuple[str, Case]], facts: Mapping[tuple[str | None, str | None], str]
) -> None:
    same_fact = None if edit.relation is None else facts.get((edit.subject, edit.relation))
    text = edit.text if edit.text in found else same_fact
    if text is not None and found[text][1].edit.target != edit.target:
        place, earlier = found[text]
        raise RequestError(
            f"{edit.text!r} -> {edit.target!r} contradicts {place} ({earlier.edit.target!r}), so this multi-hop case "
            "cannot be asked together with that one"
        )


READER = Reader("mquake", "`requested_rewrite` (a list), `questions`", _claims, _read)
