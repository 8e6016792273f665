"""zsRE as its first editing files have it: `src`, `rephrase`, `answers`, `alt`, `loc`, `loc_ans`.

Levy et al. (CoNLL 2017); targets by Mitchell et al., *Fast Model Editing at Scale*, ICLR 2022 (arXiv 2110.11309). The
new answer is `alt`. (Some papers edit towards the true answer in `answers` instead: those figures do not compare.)
EasyEdit's copy adds `portability`.
"""

from collections.abc import Mapping
from typing import Any

from retcon.errors import RequestError
from retcon.requests import Case, Edit, Probe
from retcon.sets.readers.base import Reader, Request, Row, asked_further, each, number, one, template, texts

__all__ = ["READER"]

_LOC_PREFIX = "nq question: "


def _claims(record: Mapping[str, Any]) -> bool:
    return "src" in record and "alt" in record


def _case(row: Row, request: Request) -> Case:
    record = row.record
    subject, new = one(record, "subject"), one(record, "alt")
    true = texts(record.get("answers"))
    if new.strip() in true:
        raise RequestError(f"the new answer {new!r} is a true one, so nothing is edited")
    edit = Edit(
        template(one(record, "src"), subject),
        subject,
        new,
        true[0] if true else None,
        id=f"{request.source}-{number(record, 'case_id', row.number)}",
    )
    kept = texts(record.get("loc_ans"))
    other = [text.removeprefix(_LOC_PREFIX) for text in texts(record.get("loc"))]
    neighbours = tuple(Probe(question, tuple(kept)) for question in other if kept)
    return Case(
        edit,
        tuple(texts(record.get("rephrase"))),
        neighbours,
        portability=asked_further(record),
        source=request.source,
    )


READER = Reader("mend", "`src`, `alt`", _claims, each(_case))
