"""Tasks to outcomes to figures, whoever scores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retcon import storage
from retcon.evaluate.ability import harness as harnessing
from retcon.evaluate.ability.tasks import TASKS, load, right
from retcon.evaluate.answers import Answers
from retcon.lm import LM
from retcon.metrics import ABILITY
from retcon.metrics.intervals import intervals as intervals_of
from retcon.metrics.intervals import paired
from retcon.metrics.summary import mean

__all__ = ["Asking", "Outcome", "details", "figures", "intervals"]

_OWN = "retcon"
"""Who scores our own tasks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one model did on one task."""

    hits: list[float]
    """A value an item, 1.0 where it is right."""
    items: str
    """Hash of the items, which two outcomes must share to be compared."""
    scored_by: str
    metric: str = "acc"
    filter: str | None = None
    """Of lm-evaluation-harness: what took the answer out of the text."""


class Asking:
    """The tasks that are asked of a model, before and after."""

    def __init__(self, names: Sequence[str], *, files: Path | None = None, harness: bool = False) -> None:
        """Sort tasks by who scores them.

        Args:
            names: of our own tasks, or of the harness's.
            files: a folder with tasks for the harness, as YAML.
            harness: whether the harness scores ours, too.

        Raises:
            RetconError: a task needs the harness, and it is not installed, or does not know it.
        """
        wanted = list(dict.fromkeys(names))
        self._ours = [name for name in wanted if name in TASKS and not harness]
        self._theirs = [name for name in wanted if name not in self._ours]
        self._order, self._files = wanted, files
        if self._theirs:
            harnessing.check(self._theirs, files)

    def of(self, lm: LM, answers: Answers) -> dict[str, Outcome]:
        """How the model does as it is now, task by task."""
        found = {
            name: Outcome(right(lm, load(name), answers), storage.digest([repr(one) for one in load(name)]), _OWN)
            for name in self._ours
        }
        if self._theirs:
            for name, scored in harnessing.run(lm, self._theirs, self._files).items():
                found[name] = Outcome(scored.hits, scored.items, scored.version, scored.metric, scored.filter)
        return {name: found[name] for name in self._order if name in found}


def _rule(outcome: Outcome) -> str:
    """When an item is right, in words."""
    if outcome.scored_by == _OWN:
        return "The right choice has the highest summed log probability; a tie is a miss."
    taken = "" if outcome.filter in (None, "none") else f", of the answer that its filter {outcome.filter} finds"
    return f"By the rule of the task in {outcome.scored_by}: {outcome.metric}{taken}."


def figures(outcomes: Mapping[str, Outcome]) -> dict[str, float | None]:
    """`ability_TASK` of each task: the share of items that are right."""
    return {ABILITY + name: mean(outcome.hits) for name, outcome in outcomes.items()}


def intervals(outcomes: Mapping[str, Outcome], seed: int) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals of the figures, over items."""
    found: dict[str, tuple[float, float]] = {}
    for name, outcome in outcomes.items():
        found |= intervals_of({ABILITY + name: outcome.hits}, range(len(outcome.hits)), seed=seed)
    return found


def details(after: Mapping[str, Outcome], before: Mapping[str, Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """Every item of every task, and, where the unedited model was asked too, a paired test of the change."""
    found: dict[str, dict[str, Any]] = {}
    for name, outcome in after.items():
        found[name] = {
            "items": len(outcome.hits),
            "items_sha256": outcome.items,
            "scored_by": outcome.scored_by,
            "metric": outcome.metric,
            "filter": outcome.filter,
            "rule": _rule(outcome),
            "hits": outcome.hits,
        }
        if name in before:
            earlier = before[name].hits
            change = paired(outcome.hits, earlier, range(len(earlier)), seed=seed)
            found[name] |= {"hits_before": earlier}
            if change is not None:
                found[name]["change"] = {
                    "difference": change.difference,
                    "interval": [change.low, change.high],
                    "p": change.p,
                }
    return found
