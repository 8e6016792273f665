"""One record (a JSON object, a row) to an `Edit` or a `Case`, with complaints that name the key and the cure."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from retcon.errors import RequestError
from retcon.requests.holes import masked
from retcon.requests.nouns import Case, Edit, Probe, split_prompt

__all__ = [
    "EDIT_KEYS",
    "Record",
    "case_from_dict",
    "case_to_dict",
    "checked",
    "from_dict",
    "text_of",
    "to_dict",
]


def from_dict(record: Mapping[str, Any]) -> Edit:
    """The edit of a record with the files' field names (`target_new`, `target_true`; `target` and `old` mean the same).

    The fields that say how an edit is judged (`paraphrases` and the like) may be there and are left aside.

    Raises:
        RequestError: naming the key that is unknown, missing or of the wrong type, or what is wrong with its text.
    """
    kept = {key: value for key, value in record.items() if key not in _JUDGING}
    return checked(_EditRecord, kept, _KEYS, _ALIASES).edit()


def to_dict(edit: Edit) -> dict[str, str | None]:
    """The record of an edit with the files' field names; `from_dict` takes it back, unless its prompt is hidden.

    What the edit hides is null, and where the target names a hidden subject it has a hole (`masked`).
    """
    target = edit.target
    if "subject" in edit.hidden:
        target, _ = masked(target, [edit.subject or "", *edit.names])
    told = {"prompt": edit.prompt, "subject": edit.subject, "old": edit.old} | dict.fromkeys(edit.hidden)
    return {
        "id": edit.id,
        "prompt": told["prompt"],
        "subject": told["subject"],
        "target_new": target,
        "target_true": told["old"],
        "relation": edit.relation,
    }


def text_of(record: Mapping[str, Any]) -> str | None:
    """The prompt of an edit's record with the subject filled in; None where the record leaves it out."""
    if record.get("prompt") is None:
        return None
    subject, prompt = record.get("subject"), str(record["prompt"])
    return prompt if subject is None else str(subject).join(split_prompt(prompt))


def case_from_dict(record: Mapping[str, Any]) -> Case:
    """The case of a record with the files' field names; errors as in `from_dict`."""
    return checked(_CaseRecord, record, _KEYS, _ALIASES).case()


def case_to_dict(case: Case) -> dict[str, Any]:
    """The record of a case with the files' field names; `case_from_dict` takes it back as `from_dict` does its edit."""
    neighbours = [_probe_to_dict(probe) for probe in case.neighbours]
    return {
        **to_dict(case.edit),
        "paraphrases": list(case.paraphrases),
        "neighbours": [
            probe | {"answer": probe["answer"][0]} if len(probe["answer"]) == 1 else probe for probe in neighbours
        ],
        "generation_prompts": list(case.generation_prompts),
        "portability": [_probe_to_dict(probe) for probe in case.portability],
        "source": case.source,
        "aliases": list(case.aliases),
    }


def _probe_to_dict(probe: Probe) -> dict[str, Any]:
    kind = {} if probe.kind is None else {"kind": probe.kind}
    return {"prompt": probe.prompt, "answer": list(probe.answers), **kind}


class Record(BaseModel):
    """A record by its fields, none of them unknown, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _ProbeRecord(Record):
    prompt: str
    answer: str | list[str]
    kind: str | None = None

    def probe(self) -> Probe:
        return Probe(self.prompt, (self.answer,) if isinstance(self.answer, str) else tuple(self.answer), self.kind)


class _EditRecord(Record):
    id: str | int | None = None
    prompt: str
    subject: str | None = None
    target_new: str
    target_true: str | None = None
    relation: str | None = None

    def edit(self) -> Edit:
        name = None if self.id is None else str(self.id)
        return Edit(self.prompt, self.subject, self.target_new, self.target_true, self.relation, name)


class _CaseRecord(_EditRecord):
    paraphrases: list[str] = []
    neighbours: list[_ProbeRecord] = []
    generation_prompts: list[str] = []
    portability: list[_ProbeRecord] = []
    source: str | None = None
    aliases: list[str] = []

    def case(self) -> Case:
        return Case(
            self.edit(),
            tuple(self.paraphrases),
            tuple(neighbour.probe() for neighbour in self.neighbours),
            tuple(self.generation_prompts),
            tuple(consequence.probe() for consequence in self.portability),
            self.source,
            tuple(self.aliases),
        )


EDIT_KEYS = tuple(_EditRecord.model_fields)
_KEYS = tuple(_CaseRecord.model_fields)
_PROBE_KEYS = tuple(_ProbeRecord.model_fields)
_JUDGING = frozenset(_KEYS) - frozenset(EDIT_KEYS)
_ALIASES = {"target": "target_new", "old": "target_true"}
R = TypeVar("R", bound=Record)


def checked(kind: type[R], record: Mapping[str, Any], keys: Sequence[str], aliases: Mapping[str, str]) -> R:
    """The record by its fields.

    Args:
        kind: its fields.
        record: as it came.
        keys: the fields' names, for complaints.
        aliases: other names, with those that they stand for.

    Raises:
        RequestError: the first complaint in our words.
    """
    for alias, key in aliases.items():
        if alias in record and key in record:
            raise RequestError(f'the record has "{alias}" and "{key}", which mean the same; keep one')
    try:
        return kind.model_validate({aliases.get(key, key): value for key, value in record.items()})
    except ValidationError as error:
        raise RequestError(_sentence(error, keys, aliases)) from None


def _sentence(error: ValidationError, keys: Sequence[str], aliases: Mapping[str, str]) -> str:
    """The first complaint in our words: which key, what is wrong, what to write."""
    # A misspelt key is missing as well as unknown: say the latter, which names the culprit.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    # A union puts the branch it tried ("str", "list[str]") into the path; only keys and positions are of interest.
    path = [part for part in first["loc"] if isinstance(part, int) or part in (*keys, *_PROBE_KEYS)]
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        known = _PROBE_KEYS if len(first["loc"]) > 1 else (*keys, *aliases)
        near = difflib.get_close_matches(unknown, known, n=1)
        return f'unknown key "{unknown}"; ' + (
            f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"
        )
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if first["type"] == "missing":
        return f'"{key}" is missing; add it'
    wanted = {"string_type": "text in quotes", "list_type": "a list in [ ]", "model_type": "an object in { }"}
    if first["type"] in wanted:
        return f'"{key}" must be {wanted[first["type"]]}, not {json.dumps(first["input"], default=repr)[:80]}'
    return f'"{key}" is wrong ({first["msg"]}); mend it'
