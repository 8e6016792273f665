"""Our own schema of edits and cases, and that of questions (ours, TOFU's and PISTOL's are one)."""

from collections.abc import Mapping
from typing import Any

from retcon.requests import Case, ForgetCase, case_from_dict, check_answer
from retcon.requests.forgetting import retained
from retcon.sets.readers.base import Reader, Request, Row, each, number, texts

__all__ = ["CASES", "QUESTIONS"]

_ASKED = ("subject", "aliases", "group", "edge", "split", "entities")
_JUDGED = ("paraphrased_question", "paraphrased_answer")


def _claims_case(record: Mapping[str, Any]) -> bool:
    return "prompt" in record and ("target_new" in record or "target" in record)


def _case(row: Row, request: Request) -> Case:
    return case_from_dict(row.record)


def _claims_question(record: Mapping[str, Any]) -> bool:
    return "question" in record and "answer" in record


def _question(row: Row, request: Request) -> ForgetCase:
    """TOFU (`perturbed_answer`), PISTOL (`edge`) and ours; other keys, such as TOFU's options, are left aside."""
    record = row.record
    kept = {key: record[key] for key in (*_ASKED, *_JUDGED) if record.get(key) is not None}
    kept |= {"question": record["question"], "answer": record["answer"]}
    if wrong := texts(record.get("perturbed_answers", record.get("perturbed_answer"))):
        kept["perturbed_answers"] = wrong
    split = request.split or row.stem
    kept.setdefault("split", split)
    kept["id"] = number(record, "id", row.number) if "id" in record else f"{request.source}-{split}-{row.number}"
    case = retained(kept)
    if split.startswith("forget"):
        check_answer(case.forget)
    return case


CASES = Reader("ours", "`prompt`, `target_new`", _claims_case, each(_case))
QUESTIONS = Reader("questions", "`question`, `answer`", _claims_question, each(_question))
