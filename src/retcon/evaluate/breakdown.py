"""Figures told apart: behind texts of each length, by how many facts of a subject were edited, by kind of question."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from retcon.evaluate.measure import Values, clusters
from retcon.metrics.intervals import interval, resample_means
from retcon.metrics.summary import mean
from retcon.requests import Case

__all__ = ["by_facts_of_the_subject", "by_kind", "by_length"]

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
    samples = resample_means(columns, clusters(subjects), seed=seed)
    bounds = {name: found for name in samples if (found := interval(samples[name])) is not None}
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
    cases: Sequence[Case], given: Sequence[Case], rows: Sequence[Mapping[str, Value]]
) -> dict[str, dict[str, Any]]:
    """The figures of cases by how many facts of their subject there are; empty where no subject has more than one.

    Args:
        cases: those that were judged.
        given: all there are, of which the judged ones may be a sample: they say how many facts a subject has.
        rows: the values of each judged case.

    Returns:
        For each number of facts: how many `subjects` and `facts` were judged, the mean of each figure over the facts,
        and `all_NAME`, the share of subjects of which every fact holds, where all of them were judged.
    """
    counts = Counter(case.edit.subject for case in given if case.edit.subject is not None)
    if not counts or max(counts.values()) < 2:
        return {}
    groups: dict[int, dict[str, list[Mapping[str, Value]]]] = {}
    for case, row in zip(cases, rows, strict=True):
        subject = case.edit.subject
        if subject is not None:
            groups.setdefault(counts[subject], {}).setdefault(subject, []).append(row)
    return {str(count): _group(count, groups[count]) for count in sorted(groups)}


def _group(count: int, subjects: Mapping[str, list[Mapping[str, Value]]]) -> dict[str, Any]:
    """The figures of the subjects with so many facts."""
    rows = [row for facts in subjects.values() for row in facts]
    found: dict[str, Any] = {"subjects": len(subjects), "facts": len(rows)}
    found |= {name: mean(row.get(name) for row in rows) for name in rows[0]}
    whole = [facts for facts in subjects.values() if len(facts) == count]
    for name in _ALL_RIGHT:
        if name in rows[0]:
            found[f"all_{name}"] = mean(float(all(row[name] == 1 for row in facts)) for facts in whole)
    return found


def by_kind(values: Values, before: Values | None) -> dict[str, dict[str, Any]]:
    """`portability_gen` of the questions of each kind, beside the unedited model's; each question weighs the same.

    Args:
        values: of the edited model.
        before: of the unedited one, if it was asked.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted({_kind(one.question.kind) for case in values.portability for one in case}):
        after, earlier = (
            None
            if some is None
            else [one for case in some.portability for one in case if _kind(one.question.kind) == kind]
            for some in (values, before)
        )
        assert after is not None
        found[kind] = {
            "questions": len(after),
            "portability_gen": mean(one.right for one in after),
            "before": None if earlier is None else mean(one.right for one in earlier),
        }
    return found


def _kind(name: str | None) -> str:
    return "unnamed" if name is None else name
