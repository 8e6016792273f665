"""CounterFact as published: `requested_rewrite` (one), `paraphrase_prompts`, `neighborhood_prompts` ...

Meng, Bau, Andonian, Belinkov, *Locating and Editing Factual Associations in GPT*, NeurIPS 2022 (arXiv 2202.05262).
"""

from collections.abc import Mapping
from typing import Any

from retcon.requests import Case, Edit, Probe
from retcon.sets.readers.base import Reader, Request, Row, asked_further, each, number, one, texts

__all__ = ["READER", "answer_text"]


def answer_text(rewrite: Mapping[str, Any], key: str) -> str:
    """A target, which is a text or an object with its `str`."""
    return one(rewrite, key, "str") if isinstance(rewrite.get(key), Mapping) else one(rewrite, key)


def _claims(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("requested_rewrite"), Mapping)


def _case(row: Row, request: Request) -> Case:
    record, rewrite = row.record, row.record["requested_rewrite"]
    old = answer_text(rewrite, "target_true")
    name = f"{request.source}-{number(record, 'case_id', row.number)}"
    edit = Edit(
        one(rewrite, "prompt"),
        one(rewrite, "subject"),
        answer_text(rewrite, "target_new"),
        old,
        rewrite.get("relation_id"),
        name,
    )
    return Case(
        edit,
        tuple(texts(record.get("paraphrase_prompts"))),
        tuple(Probe(prompt, (old,)) for prompt in texts(record.get("neighborhood_prompts"))),
        tuple(texts(record.get("generation_prompts"))),
        asked_further(record),
        source=request.source,
    )


READER = Reader("counterfact", "`requested_rewrite` (an object)", _claims, each(_case))
