"""Records of questions to forget, and what is wrong with several of them together."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar, get_args

from pydantic import ConfigDict, Field

from retcon.errors import RequestError, RetconWarning
from retcon.metrics.texts import mentions
from retcon.requests.conflicts import Conflicts
from retcon.requests.nouns import Forget, ForgetCase
from retcon.requests.records import Record, checked

__all__ = [
    "FORGET_COLUMNS",
    "GivenTarget",
    "check_answer",
    "check_forgets",
    "forget_case_from_dict",
    "forget_case_to_dict",
    "forget_from_dict",
    "left_to_keep",
    "retained",
    "target_from_dict",
]

FORGET_COLUMNS = ("id", "question", "answer", "subject", "group", "split")
"""What a CSV of questions may have."""


@dataclass(frozen=True, slots=True)
class GivenTarget:
    """What a user wants said in place of an answer."""

    target: str
    question: str | None = None
    id: str | None = None


T = TypeVar("T")
_ALIASES = {"edge": "group", "perturbed_answer": "perturbed_answers"}


def forget_from_dict(record: Mapping[str, Any]) -> Forget:
    """What a method may see of a record with the files' field names (`question`, `answer`, `group` or `edge` ...).

    Raises:
        RequestError: naming the key that is unknown, missing or of the wrong type, or what is wrong with its text.
    """
    return forget_case_from_dict(record).forget


def forget_case_from_dict(record: Mapping[str, Any]) -> ForgetCase:
    """The question of a record and how it is judged; errors as in `forget_from_dict`, and the answer's own.

    Raises:
        RequestError: the answer stands in its own question.
    """
    case = retained(record)
    check_answer(case.forget)
    return case


def forget_case_to_dict(case: ForgetCase) -> dict[str, Any]:
    """The record of a question with the files' field names, without what it does not have; `retained` takes it back."""
    forget = case.forget
    record = {
        "id": forget.id,
        "question": forget.question,
        "answer": forget.answer,
        "subject": forget.subject,
        "aliases": list(forget.aliases),
        "group": forget.group,
        "split": case.split,
        "entities": list(case.entities),
        "paraphrased_question": list(case.paraphrases),
        "paraphrased_answer": case.paraphrased_answer,
        "perturbed_answers": list(case.perturbed_answers),
    }
    return {key: value for key, value in record.items() if value}


def retained(record: Mapping[str, Any]) -> ForgetCase:
    """A question whose answer is to stay: it may hold its answer."""
    return checked(_ForgetRecord, record, _KEYS, _ALIASES).case()


def target_from_dict(record: Mapping[str, Any]) -> GivenTarget:
    """A user's target of a record with `target` and `question` or `id`.

    Raises:
        RequestError: naming the key that is unknown, missing or of the wrong type, or a text that is empty.
    """
    found = checked(_TargetRecord, record, tuple(_TargetRecord.model_fields), {})
    if found.question is None and found.id is None:
        raise RequestError('the target has neither "question" nor "id"; add one, to tell which question it is for')
    if not found.target.strip():
        raise RequestError('"target" is empty; write it out')
    name = None if found.id is None else str(found.id)
    return GivenTarget(found.target.strip(), None if found.question is None else found.question.rstrip(" "), name)


def check_answer(item: Forget) -> None:
    """Refuse a question that holds its own answer: nothing would be forgotten while it is asked.

    Raises:
        RequestError: naming the answer.
    """
    if mentions(item.question, item.answer):
        raise RequestError(
            f"the answer {item.answer!r} stands in its own question, so whoever asks knows it; reword the question, or "
            "leave it out"
        )


def check_forgets(
    items: Sequence[Forget], conflicts: Conflicts = "error", *, labels: Sequence[str] | None = None
) -> tuple[list[int], list[str]]:
    """Which questions to keep (positions, in order) and what to warn of.

    One question with different answers is a conflict. A question that stands twice with one answer is kept once, and a
    repeated id is only warned of.

    Args:
        items: in the order in which they were given.
        conflicts: "error" refuses a conflict, "last" keeps the last answer to each question.
        labels: what to call each in a message, such as "line 12"; else "question 1", "question 2" and so on.

    Raises:
        RequestError: on a conflict, with both named.
    """
    if conflicts not in get_args(Conflicts):
        raise RequestError(f"conflicts is {conflicts!r}; it is one of " + ", ".join(map(repr, get_args(Conflicts))))
    labels = labels or [f"question {n}" for n in range(1, len(items) + 1)]
    alive: dict[str, int] = {}
    ids: dict[str, int] = {}
    remarks = []
    for n, item in enumerate(items):
        first = alive.get(item.question)
        if first is None:
            alive[item.question] = n
        elif items[first].answer == item.answer:
            remarks.append(f"{labels[n]} repeats {labels[first]} and is left out: {item.question!r}")
            continue
        elif conflicts == "error":
            raise RequestError(
                f"{labels[first]} and {labels[n]} give {item.question!r} different answers "
                f"({items[first].answer!r}, {item.answer!r}); remove one, or ask to keep the last"
            )
        else:
            remarks.append(f"{labels[n]} overrules {labels[first]}: {item.question!r} -> {item.answer!r}")
            alive[item.question] = n
        if item.id is not None and (same := ids.setdefault(item.id, n)) != n:
            remarks.append(f"{labels[n]} has the id of {labels[same]}, {item.id!r}")
    return sorted(alive.values()), remarks


def left_to_keep(
    keep: Sequence[T], forget: Iterable[ForgetCase], question: Callable[[T], str] = attrgetter("forget.question")
) -> list[T]:
    """What is to be kept, without the questions that are to be forgotten too: nobody can have both. Warns of them.

    Args:
        keep: the questions to keep, as cases or in another form.
        forget: the questions to forget.
        question: the text of one to keep, in a form of its own.
    """
    gone = {_plainly(case.forget.question) for case in forget}
    left = [one for one in keep if _plainly(question(one)) not in gone]
    if both := len(keep) - len(left):
        warnings.warn(
            f"{both} of {len(keep)} questions to keep are to be forgotten too, and are left out of those to keep",
            RetconWarning,
            stacklevel=3,
        )
    return left


def _plainly(text: str) -> str:
    return " ".join(text.casefold().split())


class _TargetRecord(Record):
    model_config = ConfigDict(extra="ignore")  # a file may tell how its targets were made

    id: str | int | None = None
    question: str | None = None
    target: str


class _ForgetRecord(Record):
    id: str | int | None = None
    question: str
    answer: str
    subject: str | None = None
    aliases: list[str] = Field(default_factory=list)
    group: str | int | None = None
    split: str | None = None
    entities: list[str] = Field(default_factory=list)
    paraphrased_question: str | list[str] = Field(default_factory=list)
    paraphrased_answer: str | None = None
    perturbed_answers: list[str] = Field(default_factory=list)

    def case(self) -> ForgetCase:
        name = None if self.id is None else str(self.id)
        group = None if self.group is None else str(self.group)
        other = self.paraphrased_question
        return ForgetCase(
            Forget(self.question, self.answer, self.subject, tuple(self.aliases), group, name),
            (other,) if isinstance(other, str) else tuple(other),
            self.paraphrased_answer,
            tuple(self.perturbed_answers),
            self.split,
            tuple(self.entities),
        )


_KEYS = tuple(_ForgetRecord.model_fields)
