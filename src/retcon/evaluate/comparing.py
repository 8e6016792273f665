"""Which of two patches is better? A paired test of each figure, on the cases that both were judged by."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retcon.errors import RetconError
from retcon.evaluate.measure import clusters
from retcon.evaluate.record import Report
from retcon.metrics import ABILITY
from retcon.metrics.intervals import Paired, paired

__all__ = ["Comparison", "compare"]

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the first report's figures differ from the second's, case by case."""

    figures: dict[str, Paired]
    """First minus second, of each figure that both have on enough cases."""
    cases: int
    """How many cases both were judged by."""
    only_first: int
    only_second: int
    """Cases that only one of them was judged by, and that say nothing here."""
    not_compared: dict[str, str] = field(default_factory=dict)
    """Why a figure that both have is not compared: in some case it is no finite number."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "cases": self.cases,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "figures": {
                name: {
                    "difference": found.difference,
                    "interval": [found.low, found.high],
                    "p": found.p,
                    "rows": found.rows,
                    "clusters": found.clusters,
                }
                for name, found in self.figures.items()
            },
            "not_compared": dict(self.not_compared),
        }


def compare(first: Report, second: Report, *, seed: int = 0) -> Comparison:
    """Whether two patches differ, figure by figure: a paired bootstrap test on the cases of both reports.

    Only figures that are means over cases can be compared so, and those of ability over items; `score` and perplexity
    cannot. Whole subjects are drawn. Many figures are tested at once: of twenty that do not differ, one will be below
    p = 0.05.

    Args:
        first: the report of one patch.
        second: the report of another, on the same cases.
        seed: of the bootstrap.

    Raises:
        RetconError: the reports share no case.
    """
    ours, theirs = _named(first), _named(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise RetconError("the two reports have no case in common; judge both patches by the same cases")
    subjects = clusters([ours[key]["subject"] for key in shared])
    rows = [(ours[key]["metrics"], theirs[key]["metrics"]) for key in shared]
    names = [name for name in first.metrics if name in second.metrics and any(name in one for one, _ in rows)]
    ruined = {name: sum(not (_sound(one, name) and _sound(two, name)) for one, two in rows) for name in names}
    found: dict[str, Paired | None] = {
        name: paired([one.get(name) for one, _ in rows], [two.get(name) for _, two in rows], subjects, seed=seed)
        for name in names
        if not ruined[name]
    }
    found |= _abilities(first, second, seed)
    return Comparison(
        {name: result for name, result in found.items() if result is not None},
        len(shared),
        len(ours) - len(shared),
        len(theirs) - len(shared),
        {name: f"in {n} of {len(shared)} cases it is no finite number" for name, n in ruined.items() if n},
    )


def _sound(values: Mapping[str, float | None], name: str) -> bool:
    """Whether a case has a finite number there, or nothing."""
    value = values.get(name)
    return value is None or math.isfinite(value)


def _named(report: Report) -> dict[Key, dict[str, Any]]:
    """The records of a report by what they are about; of equal ones the first is the first of the other report too."""
    seen: Counter[Key] = Counter()
    found: dict[Key, dict[str, Any]] = {}
    for case in report.cases:
        key = (case["id"], case["prompt"], case["target"])
        found[*key, seen[key]] = case
        seen[key] += 1
    return found


def _abilities(first: Report, second: Report, seed: int) -> Mapping[str, Paired | None]:
    """Each task that both models worked on, item by item."""
    ours, theirs = (report.details.get("ability", {}) for report in (first, second))
    return {
        ABILITY + name: paired(ours[name]["hits"], theirs[name]["hits"], range(len(ours[name]["hits"])), seed=seed)
        for name in ours
        if name in theirs and ours[name]["items_sha256"] == theirs[name]["items_sha256"]
    }
