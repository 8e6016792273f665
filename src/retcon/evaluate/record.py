"""What an evaluation found: the figures, their intervals, every case, and how it all came about."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report", "plain"]

Value = float | None


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
    details: dict[str, Any] = field(default_factory=dict)
    """What is behind figures: `prefix_tokens`, `facts_of_the_subject`, `portability`, `specificity_gen`, `ability`;
    each only where there is something to tell."""

    @property
    def edited(self) -> bool:
        """Whether a patch was on; without one, `metrics` are those of the model alone."""
        return self.provenance.get("patch") is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a figure that is not a finite number becomes None."""
        names = ("n", "metrics", "before", "seconds", "intervals", "before_intervals", "details", "provenance", "cases")
        return {name: plain(getattr(self, name)) for name in names}

    def to_json(self, *, indent: int | None = 2) -> str:
        """One JSON object that begins with n, metrics, before and seconds."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        for name in ("intervals", "before_intervals"):
            data[name] = {key: (low, high) for key, (low, high) in data[name].items()}
        return cls(**data)


def plain(value: Any) -> Any:
    """A value in JSON types; a number that is not finite becomes None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
