"""What an evaluation found: the figures, their intervals, every case, and how it all came about."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retcon.metrics.summary import score

__all__ = ["Report", "noted", "plain", "restored", "scored"]

Value = float | None

_NOTES = (("metrics", "not_finite"), ("figures", "not_finite"), ("before", "before_not_finite"))
"""Where figures stand in a record, and where beside them it says which of them are no finite numbers."""


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a model before and after a patch."""

    n: int
    """How many cases were scored."""
    metrics: dict[str, Value]
    """Each figure of the edited model, by the names of `retcon.metrics.METRICS`, then `ability_TASK` of each task; None
    where no case has the content."""
    before: dict[str, Value]
    """The same figures of the unedited model; empty if no comparison was asked for."""
    seconds: float
    """Wall-clock time of the evaluation."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% bootstrap intervals of `metrics`, for those that can have one."""
    before_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The same of `before`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, patch, data, seeds, prefixes, versions, machine: what it takes to do it again."""
    cases: list[dict[str, Any]] = field(default_factory=list)
    """A record a case: the edit, its values, its answers, the paraphrases `missed`, the neighbours `changed`, what was
    `written` freely at the edit prompt, and the questions of `portability` with what was written there."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the figures must know: which are no finite numbers, and so have no interval."""
    details: dict[str, Any] = field(default_factory=dict)
    """What is behind figures: `prefix_tokens`, `facts_of_the_subject`, `portability`, `specificity_gen`, `ability`;
    each only where there is something to tell."""

    @property
    def edited(self) -> bool:
        """Whether a patch was on; without one, `metrics` are those of the model alone."""
        return self.provenance.get("patch") is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. A figure that is not a finite number becomes None; which these are, and what they were,
        is told beside them: in `not_finite` and `before_not_finite`, here and in each case, where there are any."""
        names = (
            "n", "metrics", "before", "seconds", "intervals", "before_intervals", "warnings", "details", "provenance",
        )  # fmt: skip
        found = {name: plain(getattr(self, name)) for name in names}
        found |= noted({"metrics": self.metrics, "before": self.before})
        return found | {"cases": [plain(case) | noted(case) for case in self.cases]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """One JSON object that begins with n, metrics, before and seconds."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        data = restored(json.loads(text))
        data["cases"] = [restored(case) for case in data["cases"]]
        for name in ("intervals", "before_intervals"):
            data[name] = {key: (low, high) for key, (low, high) in data[name].items()}
        return cls(**data)


def noted(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Which figures of a record are no finite numbers, for `plain` makes them None; only where there are any.

    >>> noted({"metrics": {"perplexity": math.inf, "efficacy": 1.0}, "before": {"perplexity": 20.0}})
    {'not_finite': {'perplexity': 'inf'}}
    """
    found = {
        note: {name: str(float(value)) for name, value in (record.get(group) or {}).items() if _broken(value)}
        for group, note in _NOTES
        if group in record
    }
    return {note: names for note, names in found.items() if names}


def restored(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of JSON with the figures that `noted` told of as the numbers they were, and without the notes.

    >>> restored({"metrics": {"perplexity": None}, "not_finite": {"perplexity": "inf"}})
    {'metrics': {'perplexity': inf}}
    """
    notes = {note for _, note in _NOTES}
    found = {name: value for name, value in record.items() if name not in notes}
    for group, note in _NOTES:
        if group in found and record.get(note):
            found[group] = dict(found[group] or {}) | {name: float(told) for name, told in record[note].items()}
    return found


def scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a benchmark with the free-running score, which rows of older versions lack beside what it is made of;
    so that the rows of one table are ordered by one figure.

    >>> scored({"metrics": {"efficacy_gen": 1.0, "specificity_gen": 0.5, "score": 0.1}})["metrics"]["score_gen"]
    0.6666666666666666
    """
    found = dict(row)
    for group, _ in _NOTES:
        figures = found.get(group) or {}
        if "efficacy_gen" in figures and "score_gen" not in figures:
            found[group] = {**figures, "score_gen": score("score_gen", figures)}
    return found


def plain(value: Any) -> Any:
    """A value in JSON types; a number that is not finite becomes None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
