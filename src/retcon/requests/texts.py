"""Files of texts to keep: one text a line, or JSONL of records that hold one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retcon.errors import RequestError
from retcon.requests.files import Loaded, _encoded, json_records, read_text
from retcon.requests.records import text_of

__all__ = ["load_texts"]


def load_texts(path: str | Path, *, limit: int | None = None, skip_bad: bool = False) -> Loaded[str]:
    """The texts of a file: plain, one a line, or JSONL where its first line begins with a brace; UTF-8, or gzip of it.

    A record of JSONL holds a `text`, or a `prompt` (with its `subject` in the place of `{}`), or a `question`; what
    else it holds is left aside, so that files of edits, of cases and of questions serve as well. A text that is
    repeated is kept once.

    Args:
        path: the file.
        limit: take only the first good texts.
        skip_bad: list bad lines in `skipped` instead of refusing the file.

    Raises:
        RequestError: naming the file, the line and the cure; a file without a single text is refused with `skip_bad`
            too.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise RequestError(f"the limit is {limit}; take at least 1 text")
    if ".csv" in (suffix.lower() for suffix in path.suffixes):
        raise RequestError(f"{path.name} is a CSV; write the texts to keep one a line, or as JSONL")
    content, sha256 = read_text(path)
    found: dict[str, None] = {}
    skipped: list[str] = []
    for line, text in _texts(content):
        if isinstance(text, RequestError):
            skipped.append(f"{path.name} line {line}: {text}")
            if not skip_bad:
                raise RequestError(skipped[-1])
        else:
            found[text] = None
        if len(found) == limit:
            break
    if not found:
        reason = f"has no good line; the first of {len(skipped)} is {skipped[0]}" if skipped else "is empty"
        raise RequestError(f"{path.name} {reason}; write one text to keep a line")
    return Loaded(list(found), skipped, [], sha256)


def _texts(content: str) -> Iterator[tuple[int, str | RequestError]]:
    """Line numbers, from 1, with the text or with what is wrong."""
    if content.lstrip().startswith("{"):
        for line, record in json_records(content):
            yield line, record if isinstance(record, RequestError) else _text(record)
        return
    for line, text in enumerate(content.split("\n"), 1):
        if text.strip():
            try:
                yield line, _encoded(text.strip())
            except RequestError as error:
                yield line, error


def _text(record: Mapping[str, Any]) -> str | RequestError:
    """The text of a record, or what is wrong with it."""
    for key in ("text", "prompt", "question"):
        value = record.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            return RequestError(f'"{key}" must be a text with at least one character')
        return str(text_of(record)).strip() if key == "prompt" else value.strip()
    return RequestError('the record has no "text", "prompt" or "question"; write one of them')
