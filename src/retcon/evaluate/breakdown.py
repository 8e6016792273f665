"""Figures told apart: behind texts of each length, by facts of a subject, by kind of question, by step of the patch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from retcon.evaluate.measure import Values, clusters
from retcon.metrics.intervals import intervals
from retcon.metrics.summary import mean
from retcon.patch import Patch
from retcon.requests import Case, text_of

__all__ = ["by_facts_of_the_subject", "by_kind", "by_length", "by_step"]

Value = float | None

_ALL_RIGHT = ("efficacy_gen", "efficacy")
"""Figures of which it is told, too, for how many subjects all facts hold."""


def by_length(
    values: Values, before: Values | None, texts: Mapping[int, Sequence[str]], subjects: Sequence[str | None], seed: int
) -> dict[str, dict[str, Any]]:
    """`efficacy_prefixed` behind running text of each length in tokens, with its interval; length 0 is the bare prompt.

    Args:
        values: of the edited model.
        before: of the unedited one, if it was asked.
        texts: the passages of each length.
        subjects: of the cases, whose facts move together.
        seed: of the bootstrap.
    """
    columns = {str(length): [case[length] for case in values.passages] for length in texts}
    bounds = intervals(columns, clusters(subjects), seed=seed)
    return {
        name: {
            "texts": len(texts[int(name)]),
            "efficacy_prefixed": mean(column),
            "interval": list(bounds[name]) if name in bounds else None,
            "before": None if before is None else mean(case[int(name)] for case in before.passages),
        }
        for name, column in columns.items()
    }


def by_facts_of_the_subject(
    cases: Sequence[Case], given: Sequence[Case], rows: Sequence[Mapping[str, Value]], seed: int
) -> dict[str, dict[str, Any]]:
    """The figures of cases by how many facts of their subject there are; empty where no subject has more than one.

    Args:
        cases: those that were judged.
        given: all there are, of which the judged ones may be a sample: they say how many facts a subject has.
        rows: the values of each judged case.
        seed: of the bootstrap.

    Returns:
        For each number of facts: how many `subjects` and `facts` were judged, the mean of each figure over the facts,
        `all_NAME`, the share of subjects of which every fact holds, where all of them were judged, and their
        `intervals`.
    """
    counts = Counter(case.edit.subject for case in given if case.edit.subject is not None)
    if not counts or max(counts.values()) < 2:
        return {}
    groups: dict[int, dict[str, list[Mapping[str, Value]]]] = {}
    for case, row in zip(cases, rows, strict=True):
        subject = case.edit.subject
        if subject is not None:
            groups.setdefault(counts[subject], {}).setdefault(subject, []).append(row)
    return {str(count): _group(count, groups[count], seed) for count in sorted(groups)}


def _group(count: int, subjects: Mapping[str, list[Mapping[str, Value]]], seed: int) -> dict[str, Any]:
    """The figures of the subjects with so many facts."""
    owned = [(subject, row) for subject, facts in subjects.items() for row in facts]
    columns = {name: [row.get(name) for _, row in owned] for name in owned[0][1]}
    whole = {subject: facts for subject, facts in subjects.items() if len(facts) == count}
    together = {
        f"all_{name}": [float(all(row[name] == 1 for row in facts)) for facts in whole.values()]
        for name in _ALL_RIGHT
        if name in columns
    }
    bounds = intervals(columns, [subject for subject, _ in owned], seed=seed)
    bounds |= intervals(together, list(whole), seed=seed)
    return {
        "subjects": len(subjects),
        "facts": len(owned),
        **{name: mean(column) for name, column in (columns | together).items()},
        "intervals": {name: list(found) for name, found in bounds.items()},
    }


def by_kind(
    values: Values, before: Values | None, subjects: Sequence[str | None], seed: int
) -> dict[str, dict[str, Any]]:
    """`portability_gen` of the questions of each kind, beside the unedited model's; each question weighs the same.

    Args:
        values: of the edited model.
        before: of the unedited one, if it was asked.
        subjects: of the cases, whose questions move together.
        seed: of the bootstrap.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted({_kind(one.question.kind) for case in values.portability for one in case}):
        after, earlier = ([] if some is None else _of_kind(some, kind, subjects) for some in (values, before))
        bounds = intervals({kind: [right for _, right in after]}, [owner for owner, _ in after], seed=seed)
        found[kind] = {
            "questions": len(after),
            "portability_gen": mean(right for _, right in after),
            "interval": list(bounds[kind]) if kind in bounds else None,
            "before": None if before is None else mean(right for _, right in earlier),
        }
    return found


def by_step(
    cases: Sequence[Case], rows: Sequence[Mapping[str, Value]], patch: Patch | None, seed: int
) -> list[dict[str, Any]]:
    """The figures of the final model over the cases of each step that made the patch: how much of the earlier is kept.

    Args:
        cases: those that were judged.
        rows: the values of each of them.
        patch: the patch; a case is of the last step that edited its very prompt to its target.
        seed: of the bootstrap.

    Returns:
        The steps in their order, the first from 1 on: `step`, `method`, `edits` of it and of all so far, how many
        cases of it were `judged`, the mean of each figure over them and their `intervals`; empty where the cases are
        of fewer than two steps.
    """
    history = () if patch is None else patch.history
    owner = {
        (text_of(record), record.get("target_new")): number
        for number, step in enumerate(history, 1)
        for record in step.edits
    }
    groups: dict[int, list[tuple[Case, Mapping[str, Value]]]] = {}
    for case, row in zip(cases, rows, strict=True):
        if (number := owner.get((case.edit.text, case.edit.target))) is not None:
            groups.setdefault(number, []).append((case, row))
    if len(groups) < 2:
        return []
    found, so_far = [], 0
    for number, step in enumerate(history, 1):
        so_far += len(step.edits)
        if number in groups:
            told = {"step": number, "method": step.method, "edits": len(step.edits), "edits_so_far": so_far}
            found.append(told | _of_step(groups[number], seed))
    return found


def _of_step(judged: Sequence[tuple[Case, Mapping[str, Value]]], seed: int) -> dict[str, Any]:
    columns = {name: [row.get(name) for _, row in judged] for name in judged[0][1]}
    bounds = intervals(columns, clusters([case.edit.subject for case, _ in judged]), seed=seed)
    return {
        "judged": len(judged),
        **{name: mean(column) for name, column in columns.items()},
        "intervals": {name: list(pair) for name, pair in bounds.items()},
    }


def _of_kind(values: Values, kind: str, subjects: Sequence[str | None]) -> list[tuple[tuple[int, str], Value]]:
    """Whether each question of a kind is answered right, and what it moves together with."""
    return [
        (owner, one.right)
        for owner, case in zip(clusters(subjects), values.portability, strict=True)
        for one in case
        if _kind(one.question.kind) == kind
    ]


def _kind(name: str | None) -> str:
    return "unnamed" if name is None else name
