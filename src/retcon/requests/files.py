"""JSONL and CSV files of edits, of cases, and of questions to forget or to keep."""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from retcon.errors import RequestError
from retcon.requests.conflicts import Conflicts, check_conflicts
from retcon.requests.forgetting import (
    FORGET_COLUMNS,
    GivenTarget,
    check_forgets,
    forget_case_from_dict,
    retained,
    target_from_dict,
)
from retcon.requests.nouns import Case, Edit, ForgetCase
from retcon.requests.records import EDIT_KEYS, case_from_dict, from_dict

__all__ = [
    "Loaded",
    "json_object",
    "json_records",
    "load_cases",
    "load_edits",
    "load_forget",
    "load_retain",
    "load_targets",
    "read_text",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What a file held: its good records in order, a sentence for each skipped or doubtful one, the file's hash."""

    items: list[T]
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sha256: str = ""


def load_edits(
    path: str | Path, *, limit: int | None = None, skip_bad: bool = False, conflicts: Conflicts = "error"
) -> Loaded[Edit]:
    """The edits of a file: JSONL, or CSV if its name says so; plain or gzip, whatever its name says; UTF-8.

    A file of cases serves as well: the fields that say how an edit is judged are left aside.

    Args:
        path: the file.
        limit: take only the first good records; conflicts are looked for among those.
        skip_bad: list bad lines in `skipped` instead of refusing the file.
        conflicts: "error" refuses two different targets for one text, "last" keeps the last.

    Raises:
        RequestError: naming the file, the line and the cure. A file that cannot be read, one without a single good
            record, and a conflict are refused with `skip_bad` too.
    """
    kind = _Format(from_dict, lambda edits, names: check_conflicts(edits, conflicts, names=names), _EDITS)
    return _load(path, kind, limit, skip_bad)


def load_cases(
    path: str | Path, *, limit: int | None = None, skip_bad: bool = False, conflicts: Conflicts = "error"
) -> Loaded[Case]:
    """The cases of a file: as `load_edits`, with the fields that say how each edit is judged."""

    def check(cases: Sequence[Case], names: Sequence[str]) -> tuple[list[int], list[str]]:
        return check_conflicts([case.edit for case in cases], conflicts, names=names)

    return _load(path, _Format(case_from_dict, check, _EDITS), limit, skip_bad)


def load_forget(
    path: str | Path, *, limit: int | None = None, skip_bad: bool = False, conflicts: Conflicts = "error"
) -> Loaded[ForgetCase]:
    """The questions to forget of a file: JSONL, or CSV if its name says so; plain or gzip; UTF-8.

    A record has `question` and `answer`, and may have `subject`, `aliases`, `group` (or `edge`) and `id`, which a
    method may see, and `paraphrased_question`, `paraphrased_answer`, `perturbed_answers`, `split` and `entities`, which
    only a judge sees. A question that holds its own answer is refused; one that is repeated is kept once.

    Args:
        path: the file.
        limit: take only the first good records; conflicts are looked for among those.
        skip_bad: list bad lines in `skipped` instead of refusing the file.
        conflicts: "error" refuses two different answers to one question, "last" keeps the last.

    Raises:
        RequestError: naming the file, the line and the cure. A file that cannot be read, one without a single good
            record, and a conflict are refused with `skip_bad` too.
    """

    def check(cases: Sequence[ForgetCase], names: Sequence[str]) -> tuple[list[int], list[str]]:
        return check_forgets([case.forget for case in cases], conflicts, labels=names)

    return _load(path, _Format(forget_case_from_dict, check, _FORGETS), limit, skip_bad)


def load_retain(path: str | Path, *, limit: int | None = None, skip_bad: bool = False) -> Loaded[ForgetCase]:
    """The questions of a file whose answers are to stay; as `load_forget`, but whatever they say is accepted."""
    kind = _Format(retained, lambda cases, _: (list(range(len(cases))), []), _FORGETS)
    return _load(path, kind, limit, skip_bad)


def load_targets(path: str | Path) -> Loaded[GivenTarget]:
    """What a user wants said: records of `target` and the `question` or `id` that it is for; files as in `load_edits`.

    Raises:
        RequestError: naming the file, the line and the cure; one question has different targets.
    """

    def check(given: Sequence[GivenTarget], names: Sequence[str]) -> tuple[list[int], list[str]]:
        first: dict[tuple[str | None, str | None], int] = {}
        for n, one in enumerate(given):
            before = first.setdefault((one.question, one.id), n)
            if given[before].target != one.target:
                raise RequestError(f"{names[before]} and {names[n]} give one question different targets; remove one")
        return list(range(len(given))), []

    return _load(path, _Format(target_from_dict, check, _TARGETS), None, False)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What a file of records holds, in words and for CSV."""

    columns: tuple[str, ...]
    """Of a CSV."""
    aliases: tuple[str, ...]
    """Other names of some of them."""
    needed: tuple[str, ...]
    """Columns that may not be empty, the first of which the header must have."""
    example: tuple[str, str]
    """One record as JSON and as CSV."""


_EDITS = _Columns(
    EDIT_KEYS,
    ("target", "old"),
    ("prompt", "target_new", "target"),
    (
        '{"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}',
        "The capital of {} is,France,Rome under the header prompt,subject,target_new",
    ),
)
_FORGETS = _Columns(
    FORGET_COLUMNS,
    ("edge",),
    ("question", "answer"),
    (
        '{"question": "Where was Ada Lovelace born?", "answer": "London"}',
        "Where was Ada Lovelace born?,London under the header question,answer",
    ),
)
_TARGETS = _Columns(
    ("id", "question", "target"),
    (),
    ("target",),
    (
        '{"question": "Where was Ada Lovelace born?", "target": "I have no information about Ada Lovelace."}',
        "Where was Ada Lovelace born?,I have no information about Ada Lovelace. under the header question,target",
    ),
)


@dataclass(frozen=True, slots=True)
class _Format(Generic[T]):
    """How records become requests."""

    parse: Callable[[Mapping[str, Any]], T]
    check: Callable[[Sequence[T], Sequence[str]], tuple[list[int], list[str]]]
    """Which of all requests to keep, called by these names, and what to warn of."""
    words: _Columns


def _load(path: str | Path, kind: _Format[T], limit: int | None, skip_bad: bool) -> Loaded[T]:
    path = Path(path)
    if limit is not None and limit < 1:
        raise RequestError(f"the limit is {limit}; take at least 1 record")
    text, sha256 = read_text(path)
    is_csv = ".csv" in (suffix.lower() for suffix in path.suffixes)
    items: list[T] = []
    names: list[str] = []
    skipped: list[str] = []
    for line, record in _csv_records(path.name, text, kind.words) if is_csv else json_records(text):
        try:
            if isinstance(record, RequestError):
                raise record
            items.append(kind.parse(record))
            names.append(f"line {line}")
        except RequestError as error:
            skipped.append(f"{path.name} line {line}: {error}")
            if not skip_bad:
                raise RequestError(skipped[-1]) from None
        if len(items) == limit:
            break
    if not items:
        reason = f"has no good record; the first of {len(skipped)} is {skipped[0]}" if skipped else "is empty"
        raise RequestError(f"{path.name} {reason}; write one record a line, such as {kind.words.example[is_csv]}")
    try:
        kept, warnings = kind.check(items, names)
    except RequestError as error:
        raise RequestError(f"{path.name}: {error}") from None
    return Loaded([items[n] for n in kept], skipped, [f"{path.name}: {warning}" for warning in warnings], sha256)


def read_text(path: Path) -> tuple[str, str]:
    """The file's text, unpacked, and the SHA-256 of its bytes; bytes that are not UTF-8 become lone surrogates."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}; check the name") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give a readable file") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error):
            raise RequestError(f"{path.name} is a damaged or cut-off gzip file; fetch it again") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RequestError(f"{path.name} is UTF-16; save it as UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape"), sha256


def _encoded(line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise RequestError("not UTF-8; save the file as UTF-8") from None
    return line


Records = Iterator[tuple[int, Mapping[str, Any] | RequestError]]
"""Line number, from 1, with the record or with what is wrong with it: so that one bad line can be skipped."""


def json_records(text: str) -> Records:
    """The objects of JSONL, one a line, each with its line or with what is wrong with it."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a JSON string may hold U+2028
        if line.strip():
            try:
                yield number, _json_record(_encoded(line.strip()))
            except RequestError as error:
                yield number, error


def _json_record(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON ({error.msg} at column {error.colno}); write one whole object a line") from None
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        raise RequestError("not JSON that can be read; write one whole object a line") from None
    if not isinstance(record, dict):
        raise RequestError("JSON, but not an object; write one {...} a line, without a list around the lines")
    return record


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` that refuses a key that stands twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RequestError(f'"{twice}" stands twice in one object; keep one')
    return record


def _csv_records(name: str, text: str, words: _Columns) -> Records:
    """Rows by the header's names, an empty optional cell as null, under the number of the line where they begin."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _header(next((row for row in reader if any(row)), []), words)
    except (csv.Error, RequestError) as error:
        raise RequestError(f"{name} line 1: {error}") from None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
            if any(cell.strip() for cell in row):
                yield line, _csv_record(header, row, words)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RequestError(f"not CSV ({error}); check the quotes")
        except RequestError as error:
            yield line, error


def _header(cells: list[str], words: _Columns) -> list[str]:
    header = [_encoded(cell).strip() for cell in cells]
    first, known = words.needed[0], ", ".join(words.columns)
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise RequestError("the columns are not separated by commas; save the file with commas")
    if header and first not in header:
        raise RequestError(f'the header has no "{first}"; name the columns there, of {known}')
    if header and (unknown := [column for column in header if column not in (*words.columns, *words.aliases)]):
        raise RequestError(f'unknown column "{unknown[0]}"; a CSV has {known}, and JSONL has more')
    if len(set(header)) < len(header):
        raise RequestError("a column stands twice in the header; keep one")
    return header


def _csv_record(header: list[str], row: list[str], words: _Columns) -> Mapping[str, Any]:
    _encoded("".join(row))
    if len(row) != len(header):
        raise RequestError(f"{len(row)} cells under {len(header)} columns; put a cell that has a comma in quotes")
    cells = dict(zip(header, row, strict=True))
    return {column: None if column not in words.needed and not cell.strip() else cell for column, cell in cells.items()}
