"""What an evaluation of forgetting found: the figures, why some are not there, every item, and how it came about."""

import json
from dataclasses import dataclass, field
from typing import Any

from retcon.evaluate.record import noted, plain, restored

__all__ = ["ForgetReport"]

Value = float | None


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """The figures of a model before and after it was made to forget."""

    n: int
    """How many questions to forget were asked."""
    known: int
    """How many of them the unedited model answered right: its own answer held the answer or an alias. Of these leakage
    is a share."""
    metrics: dict[str, Value]
    """Each figure of the edited model, by the names of `retcon.metrics.FORGET_METRICS`; None only with a reason in
    `not_applicable`."""
    before: dict[str, Value]
    """The same of the unedited model."""
    seconds: float
    """Wall-clock time of the evaluation."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% bootstrap intervals of `metrics`, for those that can have one."""
    before_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The same of `before`."""
    not_applicable: dict[str, str] = field(default_factory=dict)
    """Why a figure of `metrics` is None."""
    before_not_applicable: dict[str, str] = field(default_factory=dict)
    """Why one of `before` is."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the figures must know."""
    details: dict[str, Any] = field(default_factory=dict)
    """What is behind figures: the test of forget quality, how many questions had other wordings, and whose."""
    detector: dict[str, Any] = field(default_factory=dict)
    """Precision and recall of the detector of refusals on its labelled lines."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, patch, data, seeds, decoding, versions, machine: what it takes to do it again."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """A record a question: its salted id and figures; on request also `question`, `gold`, and the model's answers
    `before` and `after`."""

    @property
    def edited(self) -> bool:
        """Whether a patch was on; without one, `metrics` are those of the model alone."""
        return self.provenance.get("patch") is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. A figure that is not a finite number becomes None; which these are, and what they were,
        is told in `not_finite` and `before_not_finite`, where there are any."""
        names = (
            "n", "known", "metrics", "before", "intervals", "not_applicable", "seconds", "warnings", "before_intervals",
            "before_not_applicable", "details", "detector", "provenance", "items",
        )  # fmt: skip
        found = {name: plain(getattr(self, name)) for name in names}
        return found | noted({"metrics": self.metrics, "before": self.before})

    def to_json(self, *, indent: int | None = 2) -> str:
        """One JSON object that begins with n, known, metrics and before."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ForgetReport":
        """The report that `to_json` wrote."""
        data = restored(json.loads(text))
        for name in ("intervals", "before_intervals"):
            data[name] = {key: (low, high) for key, (low, high) in data[name].items()}
        return cls(**data)
