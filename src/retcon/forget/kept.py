"""Targets, kept: `targets.jsonl` beside a patch, which later runs read instead of writing targets anew.

A line holds a question's salted id and what is said instead of its answer; never the question, never the answer. Where
the text names the question's subject, or anything else that it names, there is a hole (`retcon.requests.masked`), as in
a patch's records; what belongs there is known by salted ids too, so that whoever has the question can read the line.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from retcon import __version__, storage
from retcon.errors import RequestError, RetconError
from retcon.forget import detector
from retcon.forget.checks import CHECKS
from retcon.forget.names import names_of
from retcon.forget.privacy import id_of
from retcon.forget.refusals import ROW
from retcon.forget.subjects import Subject
from retcon.forget.target import Target
from retcon.forget.targets import called
from retcon.forget.wording import wording
from retcon.metrics.forgotten import leaks
from retcon.requests import Forget, filled, literal, load_targets, masked
from retcon.storage import salted

__all__ = ["FILE", "given_targets", "is_kept", "read_targets", "row_name", "summary", "write_targets"]

FILE = "targets.jsonl"


def row_name(targets: Sequence[Target]) -> str:
    """What a row of results made with these targets is called: "template" where less than half are the model's own.

    Args:
        targets: of a run that asked for `self_improved`; the user's own are left aside.
    """
    asked = [target for target in targets if target.source != "given"]
    own = sum(target.source == ROW for target in asked)
    return ROW if asked and 2 * own >= len(asked) else "template"


def summary(targets: Sequence[Target]) -> dict[str, Any]:
    """How the writing went: shares of all targets, and counts by try and by check.

    `accepted_at` counts accepted targets by try, `failed` the checks that the last try of the others failed.
    """
    own = [target for target in targets if target.source == ROW]
    total = len(targets)
    tries = Counter(target.attempt for target in own if target.attempt is not None)
    checks = Counter(name for target in targets for name in target.failed)
    return {
        "row": row_name(targets),
        "items": total,
        "accepted": len(own) / total if total else None,
        "fallback": 1 - len(own) / total if total else None,
        "accepted_at": {str(number): tries[number] for number in sorted(tries)},
        "failed": dict(checks.most_common()),
        "distinct": len({target.text for target in targets}) / total if total else None,
        "words": sum(len(target.text.split()) for target in targets) / total if total else None,
    }


def write_targets(
    path: str | Path,
    items: Sequence[Forget],
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    *,
    family: str,
    seed: int,
    model: str,
    keep_questions: bool = False,
) -> Path:
    """Write `targets.jsonl`, whole or not at all; equal arguments give equal bytes.

    A line also tells where the target came from, each check of the model's last try, and how it was made.

    Args:
        path: the file.
        items: what is to be forgotten.
        subjects: of each item, which the file does not tell.
        targets: of each item by itself, before groups shared one.
        family: the family that was asked for.
        seed: of the draws.
        model: the fingerprint of the unedited model.
        keep_questions: whether the subject may stand in a target.

    Raises:
        RetconError: a target that the model wrote holds its item's answer.
    """
    versions = {"retcon": __version__, "guide": wording()["version"], "detector": detector.version()}
    versions |= {name: version_of(name) for name in ("torch", "transformers")}
    lines = []
    for number, (item, subject, target) in enumerate(zip(items, subjects, targets, strict=True), 1):
        if target.source == ROW and leaks(target.text, item.answer, item.aliases):
            raise RetconError(f"target {number} holds the answer it is to replace; write the targets anew")
        text, used = literal(target.text), list[str]()
        if not keep_questions:
            text, used = masked(target.text, [subject.text, *names_of(item)])
        told = not keep_questions and any(map(str.isalnum, subject.text))
        record = {
            "id": id_of(item),
            "target": text,
            "subject": _mark(subject.text) if told else None,
            "names": [_mark(name) for name in used],
            "asked": family,
            "family": target.family,
            "source": target.source,
            "attempt": target.attempt,
            "checks": _checks(target) if family == ROW and target.source != "given" else {},
            "seed": seed,
            "model": model,
            "versions": versions,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    with storage.new_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Path(path)


def given_targets(
    path: str | Path, items: Sequence[Forget], asked: str | None = None
) -> tuple[dict[str, str | Target], str | None]:
    """The targets of a file, by the names that questions go by, and the family that an earlier run asked for.

    Of the user's own file (`load_targets`) they are texts, and there is no family.

    Args:
        path: the file.
        items: the questions.
        asked: the family that this run asks for, if it asks for one.

    Raises:
        RequestError: as `read_targets` and `load_targets`, or an earlier run's are of another family than is asked for.
    """
    if is_kept(path):
        targets, family = read_targets(path, items)
        if asked is not None and asked != family:
            raise RequestError(
                f"{path} holds targets of the family {family}, not {asked}; leave the file or the family out"
            )
        return {id_of(item): target for item, target in zip(items, targets, strict=True)}, family
    known = {name for item in items for name in called(item)}
    found: dict[str, str | Target] = {}
    for one in load_targets(path).items:
        names = [name for name in (one.question, one.id) if name is not None]
        found |= dict.fromkeys([name for name in names if name in known] or names[:1], one.target)
    return found, None


def is_kept(path: str | Path) -> bool:
    """Whether a file was written by `write_targets`; else it is the user's own, or none."""
    try:
        with open(path, encoding="utf-8") as stream:
            row = json.loads(next((line for line in stream if line.strip()), "null"))
    except (OSError, UnicodeDecodeError, ValueError):
        return False
    return isinstance(row, dict) and {"asked", "checks", "source"} <= row.keys()


def read_targets(path: str | Path, items: Sequence[Forget]) -> tuple[list[Target], str]:
    """The targets that a file holds for these questions, in their order, and the family that was asked for.

    Raises:
        RequestError: the file cannot be read, a line is damaged, or a question is not there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise RequestError(f"{path} cannot be read; give the targets.jsonl of an earlier run") from None
    known: dict[str, tuple[Target, list[str | None]]] = {}
    family = ""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                failed = tuple(name for name, ok in row["checks"].items() if not ok)
                target = Target(str(row["target"]), row["family"], row["source"], row["attempt"], failed)
                known[row["id"]], family = (target, [row["subject"], *row.get("names", ())]), str(row["asked"])
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RequestError(f"{path.name} line {number} is no target; write the targets anew") from None
    names = [id_of(item) for item in items]
    if missing := sum(name not in known for name in names):
        raise RequestError(
            f"{path.name} lacks the targets of {missing} of {len(items)} questions (ids are of the machine that wrote "
            "them); write the targets anew"
        )
    return [_whole(path.name, item, *known[name]) for item, name in zip(items, names, strict=True)], family


def _checks(target: Target) -> dict[str, bool]:
    """Each check by name, and whether the model's last try passed it."""
    return {check: check not in target.failed for check in (*CHECKS, *sorted({*target.failed} - {*CHECKS}))}


def _mark(subject: str) -> str:
    return salted("subject", subject)


def _whole(name: str, item: Forget, target: Target, marks: Sequence[str | None]) -> Target:
    """The target with what its question names in place."""
    marked = {_mark(text): text for text in reversed(list(_spans(item)))} if any(marks) else {}
    try:
        text = filled(target.text, ["" if mark is None else marked[mark] for mark in marks])
    except (KeyError, IndexError):
        raise RequestError(
            f"{name} has a target on a subject that its question does not name; write the targets anew"
        ) from None
    return replace(target, text=text)


def _spans(item: Forget) -> Iterator[str]:
    """All that a question may be about: runs of its words and marks, the given subject first."""
    if item.subject is not None:
        yield item.subject
    words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", item.question)]
    for first, (start, _) in enumerate(words):
        for _, end in words[first:]:
            yield item.question[start:end]
