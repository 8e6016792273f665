"""Making the record of a model that was trained without what is to be forgotten, and taking one in."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from retcon.caches import Sealed
from retcon.errors import RetconError
from retcon.evaluate import provenance as origins
from retcon.evaluate.answers import Answers, place
from retcon.evaluate.forgetting import plan as planning
from retcon.evaluate.forgetting.heard import Heard, ask
from retcon.evaluate.forgetting.measure import measure
from retcon.evaluate.forgetting.plan import Item, Plan
from retcon.evaluate.forgetting.reference import Marks, Reference, marks
from retcon.evaluate.sampling import sampled
from retcon.forget.asking import asking
from retcon.forget.privacy import secret
from retcon.lm import LM
from retcon.metrics.membership import auc, loss_score
from retcon.metrics.summary import mean
from retcon.patch import Patch
from retcon.requests import ForgetCase, left_to_keep

__all__ = ["SETS", "answers_of", "chosen", "measured", "reference_record"]

SETS = ("forget", "retain", "near", "holdout", "real_authors", "world_facts")


def reference_record(
    lm: LM,
    forget: Sequence[ForgetCase],
    *,
    retain: Sequence[ForgetCase],
    holdout: Sequence[ForgetCase] = (),
    patch: Patch | None = None,
    chat: bool | None = None,
    sample: int | None = None,
    seed: int = 0,
    cache: bool = True,
) -> Reference:
    """What a model trained on the questions to keep alone makes of those to forget, as a record for later runs.

    Args:
        lm: the model; that it was trained so is the caller's word.
        forget: the questions to forget, as they will be judged, in the same order.
        retain: the questions that it was trained on.
        holdout: questions that neither model was trained on; without them membership cannot be told.
        patch: what makes of `lm` the model that is meant.
        chat: as in `evaluate_forgetting`, and the same as there.
        sample: as there.
        seed: as there.
        cache: whether to use and fill the cache of the unpatched model's answers.

    Raises:
        RetconError: there is no question to forget or to keep.
        PatchError: the patch does not fit the model.
    """
    retain = left_to_keep(retain, forget)
    if not retain:
        raise RetconError("a reference needs the questions to keep that its model was trained on; give retain")
    sets = chosen({"forget": forget, "retain": retain, "holdout": holdout}, sample, seed)
    asked = asking(lm, chat)
    plan = planning.make(asked, sets, ["probability"], max_new_tokens=1, seed=seed, twin=True)
    return measured(asked, plan, marks(asked, sets, retain), patch, cache=cache)


def measured(lm: LM, plan: Plan, made_on: Marks, patch: Patch | None = None, *, cache: bool = True) -> Reference:
    """The record of a model, with a patch if one is given: how likely it finds what the plan holds out to it."""
    asked = plan.of_twin()
    with patch.on(lm.model) if patch is not None else nullcontext():
        heard = ask(lm, asked, answers_of(lm, cache=cache and patch is None))
    values = measure(asked, heard, heard)
    return Reference(
        marks=made_on,
        n={name: len(plan.sets[name]) for name in ("forget", "holdout")},
        probability=mean(row.get("probability") for row in values.forget),
        truth_ratios=values.ratios,
        membership={name: auc(*scores) for name, scores in values.membership.items()},
        losses={name: _losses(plan.sets[name], heard) for name in ("forget", "holdout")},
        learned=values.learned,
        model={**origins.model(lm), "patch": origins.of_patch(patch)},
        versions=origins.versions(),
    )


def _losses(items: Sequence[Item], heard: Heard) -> list[float | None]:
    """The loss of each answer; None where it is not finite."""
    found = (loss_score(heard.scores[item.prompt, item.answer].logprobs) for item in items)
    return [value if value is not None and math.isfinite(value) else None for value in found]


def answers_of(lm: LM, *, cache: bool) -> Answers:
    """A model's answers to questions to forget; what is kept of them on disk cannot be read without the questions."""
    if not cache:
        return Answers(lm)
    return Answers(lm, Sealed(place(lm, "forgetting"), secret("answers")))


def chosen(sets: Mapping[str, Sequence[ForgetCase]], sample: int | None, seed: int) -> dict[str, Sequence[ForgetCase]]:
    """A seeded sample of each set, or all of it; sets that are not given are empty.

    Raises:
        RetconError: there is nothing to forget.
    """
    if not sets["forget"]:
        raise RetconError("there are no questions to forget; give at least one")
    return {name: sampled(sets.get(name, ()), sample, seed) for name in SETS}
