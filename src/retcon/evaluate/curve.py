"""Are early edits still there after late ones? The retention curve of edits that come in batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retcon import progress
from retcon.errors import RetconError
from retcon.evaluate import plan as planning
from retcon.evaluate.answers import Answers
from retcon.evaluate.measure import Unedited, clusters, measure
from retcon.lm import LM
from retcon.metrics import retention as metric
from retcon.metrics.intervals import intervals
from retcon.metrics.summary import mean
from retcon.patch import Patch, steady
from retcon.requests import Case

__all__ = ["FIGURES", "Curve", "Step", "retention", "retention_step"]

Value = float | None

FIGURES = ("efficacy_gen", "efficacy", "efficacy_prob", "generalization_gen", "generalization", "generalization_prob")
"""What can be followed over time: whether edits hold."""


@dataclass(frozen=True, slots=True)
class Step:
    """One figure of all edits so far, after one batch."""

    edits: int
    """How many edits had come."""
    of_all: Value
    """The figure over all of them, each case weighing the same."""
    by_batch: tuple[Value, ...]
    """The figure over each batch so far, the earliest first."""
    interval: tuple[float, float] | None = None
    """95% of a bootstrap over subjects, of `of_all`."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure after each batch."""

    steps: tuple[Step, ...]

    @property
    def summary(self) -> metric.Retention:
        """Right after each batch, at the end, by age, and the difference: each batch weighs the same."""
        return metric.retention([step.by_batch for step in self.steps])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = self.summary
        return {
            "edits": [step.edits for step in self.steps],
            "of_all": [step.of_all for step in self.steps],
            "intervals": [None if step.interval is None else list(step.interval) for step in self.steps],
            "by_batch": [list(step.by_batch) for step in self.steps],
            "immediate": found.immediate,
            "final": found.final,
            "by_age": list(found.by_age),
            "forgotten": found.forgotten,
        }


def retention(
    lm: LM,
    batches: Sequence[Sequence[Case]],
    patches: Iterable[Patch],
    *,
    metrics: Sequence[str] = ("efficacy_gen", "efficacy"),
) -> dict[str, Curve]:
    """Measure, after every batch of edits, all edits so far.

    Patches are taken one at a time, so they may be computed or loaded as they are asked for.

    Args:
        lm: the unedited model.
        batches: the cases in the order in which they were edited, k at a time.
        patches: one a batch: either what that batch adds to those before it (a chain, each standing on the last), or
            all up to that batch (what `edit(..., state=patch)` returns).
        metrics: figures, of `FIGURES`.

    Returns:
        A curve for each figure.

    Raises:
        RetconError: there is no batch, a batch is empty, a figure cannot be followed, or there are fewer patches than
            batches.
        PatchError: a patch does not fit the model, or the ones before it.
    """
    _check(batches, metrics)
    steps: dict[str, list[Step]] = {name: [] for name in metrics}
    so_far: Patch | None = None
    source = iter(patches)
    with progress.task("retention", len(batches)) as advance:
        for n in range(1, len(batches) + 1):
            patch = next(source, None)
            if patch is None:
                raise RetconError(f"there are {len(batches)} batches and only {n - 1} patches; give one a batch")
            so_far = patch if so_far is None else so_far + patch
            for name, step in retention_step(lm, batches[:n], so_far, metrics=metrics).items():
                steps[name].append(step)
            advance(1)
    return {name: Curve(tuple(found)) for name, found in steps.items()}


def retention_step(
    lm: LM,
    batches: Sequence[Sequence[Case]],
    patch: Patch,
    *,
    metrics: Sequence[str] = ("efficacy_gen", "efficacy"),
    seed: int = 0,
) -> dict[str, Step]:
    """One step of the curve: all batches so far, with all patches so far on as one.

    Arguments and errors are those of `retention`; `seed` is that of the bootstrap.
    """
    _check(batches, metrics)
    cases = [case for batch in batches for case in batch]
    plan = planning.make(lm, cases, planning.resolve(metrics), [], None)
    with patch.on(lm.model), steady(lm.model):
        rows = iter(measure(lm, plan, Answers(lm), Unedited()).cases)
    parts = [[next(rows) for _ in batch] for batch in batches]
    columns = {name: [row.get(name) for part in parts for row in part] for name in metrics}
    bounds = intervals(columns, clusters([case.edit.subject for case in cases]), seed=seed)
    return {
        name: Step(
            edits=len(cases),
            of_all=mean(columns[name]),
            by_batch=tuple(mean(row.get(name) for row in part) for part in parts),
            interval=bounds.get(name),
        )
        for name in metrics
    }


def _check(batches: Sequence[Sequence[Case]], metrics: Sequence[str]) -> None:
    if not batches or not all(batches):
        raise RetconError("a retention curve needs batches with at least one case each")
    if unknown := [name for name in metrics if name not in FIGURES]:
        raise RetconError(f"{unknown[0]!r} cannot be followed over batches; choose from {', '.join(FIGURES)}")
