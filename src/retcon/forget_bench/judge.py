"""How a row is judged: the one place that knows the evaluation of forgetting."""

import importlib
from typing import Any, Protocol

from retcon.forget_bench.corpus import Split
from retcon.lm import LM
from retcon.patch import Patch

__all__ = ["FIGURES", "Evaluation", "Judge"]

FIGURES = (
    "reliability",
    "generalization",
    "locality",
    "retain_drift",
    "refusal_rate",
    "over_refusal",
    "refusal_quality",
    "leakage",
    "probability",
    "truth_ratio",
    "forget_quality",
    "model_utility",
    "privleak",
)
"""What is asked of each row; what cannot be had says why in the report."""


class Judge(Protocol):
    """Who says how well a model forgets."""

    def reference(self, lm: LM, split: Split, *, seed: int, cache: bool) -> Any:
        """What a model that was not taught what is to be forgotten makes of it: the measure for the others."""

    def report(
        self,
        lm: LM,
        split: Split,
        patch: Patch | None,
        *,
        reference: Any,
        max_new_tokens: int,
        seed: int,
        cache: bool,
    ) -> dict[str, Any]:
        """What forgetting achieves and what it harms, in JSON types.

        Args:
            lm: the model before it forgets.
            split: what is to be forgotten, what is to stay, and what nobody was taught.
            patch: what makes it forget; None for the model as it is.
            reference: what `reference` gave; None where there is no such model.
            max_new_tokens: the length of answers.
            seed: of what is drawn.
            cache: whether answers of the unedited model are looked up and kept.

        Returns:
            `metrics` with the patch on, `before` without it, and whatever else the judge has to say.
        """


class Evaluation:
    """The evaluation of forgetting, `retcon.evaluate.forgetting`."""

    def reference(self, lm: LM, split: Split, *, seed: int, cache: bool) -> Any:
        """The record of a twin."""
        return _module().reference_record(
            lm, split.forget, retain=split.retain, holdout=split.holdout, chat=lm.chat, seed=seed, cache=cache
        )

    def report(
        self,
        lm: LM,
        split: Split,
        patch: Patch | None,
        *,
        reference: Any,
        max_new_tokens: int,
        seed: int,
        cache: bool,
    ) -> dict[str, Any]:
        """The figures of `FIGURES`; the reference is not doubted, for it was trained here."""
        report = _module().evaluate_forgetting(
            lm,
            split.forget,
            split.retain,
            patch=patch,
            metrics=FIGURES,
            twin=reference,
            holdout=split.holdout,
            **split.general,
            chat=lm.chat,
            max_new_tokens=max_new_tokens,
            seed=seed,
            force_reference=True,
            cache=cache,
        )
        found: dict[str, Any] = report.to_dict()
        return found


def _module() -> Any:
    return importlib.import_module("retcon.evaluate.forgetting")
