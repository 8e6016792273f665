"""Cases and questions as JSONL of our own schema."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retcon.requests import Case, ForgetCase, case_to_dict, forget_case_to_dict
from retcon.storage import new_file

__all__ = ["export", "lines", "record"]


def record(item: Case | ForgetCase) -> dict[str, Any]:
    """The record of one item with the files' field names."""
    return case_to_dict(item) if isinstance(item, Case) else forget_case_to_dict(item)


def lines(items: Iterable[Case | ForgetCase]) -> tuple[str, str]:
    """The text of a JSONL file and its SHA-256."""
    text = "".join(json.dumps(record(item), ensure_ascii=False) + "\n" for item in items)
    return text, hashlib.sha256(text.encode()).hexdigest()


def export(items: Iterable[Case | ForgetCase], path: Path) -> str:
    """Write items as JSONL, whole or not at all, and return the file's SHA-256.

    `retcon edit --edits` and `retcon eval --cases` read the file of cases, `retcon forget` that of questions.
    """
    text, sha256 = lines(items)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return sha256
