"""LUME and SemEval-2025 Task 4: `id`, `input`, `output`, `task`, and `split` where the file tells.

Ramakrishna et al., *LUME: LLM Unlearning with Multitask Evaluations* (arXiv 2502.15097). An id ends with "qa" and a
number for a question, "sc" and a number for a text to go on with; what stands before is the document, here the group.
"""

import re
from collections.abc import Mapping
from typing import Any

from retcon.requests import Forget, ForgetCase, check_answer
from retcon.sets.readers.base import Reader, Request, Row, each, number, one

__all__ = ["READER"]

_ID = re.compile(r'"?(?P<document>.*?)"?(?P<kind>qa|sc)(?P<n>\d+)')
_KINDS = {"qa": "question", "sc": "completion"}


def _claims(record: Mapping[str, Any]) -> bool:
    return {"input", "output", "task"} <= record.keys()


def _question(row: Row, request: Request) -> ForgetCase:
    record = row.record
    name = number(record, "id", row.number).replace('"', "")
    parts = _ID.fullmatch(name)
    split = str(record.get("split") or request.split or row.stem)
    group = parts["document"] if parts else None
    told = f"{split} {one(record, 'task')}" + (f" {_KINDS[parts['kind']]}" if parts else "")
    forget = Forget(one(record, "input"), one(record, "output"), group=group, id=f"{request.source}-{name}")
    if split.startswith("forget") and parts and parts["kind"] == "qa":
        check_answer(forget)
    return ForgetCase(forget, split=told)


READER = Reader("lume", "`input`, `output`, `task`", _claims, each(_question))
