"""What must be said beside the figures: why one is missing, what a reader must know, what was asked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retcon.evaluate.forgetting.heard import Heard
from retcon.evaluate.forgetting.measure import Values
from retcon.evaluate.forgetting.plan import KEPT, MEMBERSHIP, NEAR, TWIN, UTILITY, Plan
from retcon.evaluate.forgetting.reference import Reference
from retcon.evaluate.provenance import asked_otherwise
from retcon.forget import paraphrases
from retcon.forget.plan import ACCESS_CONTROL
from retcon.forget.privacy import id_of
from retcon.lm import LM
from retcon.metrics.summary import mean
from retcon.metrics.texts import normal
from retcon.metrics.twin import ForgetQuality
from retcon.patch import Patch
from retcon.requests import ForgetCase
from retcon.storage import digest, salted

__all__ = ["by_shown", "data", "detail", "doubts", "reasons"]

_SAID = {
    "real_authors": "real-author questions; give real_authors",
    "world_facts": "world-fact questions; give world_facts",
    "retain": "questions to keep; give retain",
}


def reasons(
    found: Mapping[str, float | None],
    plan: Plan,
    values: Values,
    given: Mapping[str, Sequence[ForgetCase]],
    reference: Reference | None,
) -> dict[str, str]:
    """Why each figure that is None is: in a sentence's words, with the cure where there is one."""
    return {name: _reason(name, plan, values, given, reference) for name, value in found.items() if value is None}


def _reason(
    name: str,
    plan: Plan,
    values: Values,
    given: Mapping[str, Sequence[ForgetCase]],
    reference: Reference | None,
) -> str:
    if name in KEPT and not given["retain"]:
        return "there are no questions to keep; give retain"
    if name in NEAR:
        return "there are no questions close to those to forget; give near"
    if name in (*MEMBERSHIP, *TWIN[1:]) and not given["holdout"]:
        return "there are no questions that no model was trained on; give holdout"
    if name in (*TWIN, "mia_reference") and reference is None:
        return "there is no model trained without the questions to forget; give a reference"
    if name == "mia_reference" and reference is not None and not reference.losses:
        return "the record of the reference has no losses; make it again"
    if name == "mia_grad_norm" and values.no_slopes:
        return values.no_slopes
    if name in TWIN[1:]:
        return "the reference has no membership figures, or one that cannot be divided by; make it with holdout"
    if name == "forget_quality" and not any(ratio is not None for ratio in values.ratios):
        return "no question to forget has wrong answers (perturbed_answers)"
    if name == "forget_quality" and any(ratio is not None and math.isnan(ratio) for ratio in values.ratios):
        return "the model gives some answers no likelihood that is a number; it is broken"
    if name == "forget_quality":
        return "the reference has no truth ratios; make it with questions that have wrong answers (perturbed_answers)"
    if name == "model_utility":
        return _missing_utility(values, given)
    return {
        "leakage": f"the unedited model answers none of the {len(plan.sets['forget'])} questions right",
        "retain_drift": "the unedited model answers no question to keep with a word",
        "leak_10": f"the unedited model answers none of the {len(plan.sets['forget'])} questions right",
        "refusal_quality": "nothing was refused, so that there is no refusal to judge",
        "generalization": "no question has another wording whose answer can be compared",
        "truth_ratio": "no question to forget has wrong answers (perturbed_answers)",
        "mia_reference": "the answers to one of the sets have no finite loss under the reference",
        "mia_grad_norm": "the gradients of all answers to one of the sets are too large for the model's precision",
    }.get(name, "no answer to forget has a word or token to compare")


def _missing_utility(values: Values, given: Mapping[str, Sequence[ForgetCase]]) -> str:
    empty = [_SAID[name] for name in UTILITY if not given[name]]
    if empty:
        return "there are no " + ", and no ".join(empty)
    bare = [
        name
        for name in UTILITY
        if any(mean(row[part] for row in values.utility[name]) is None for part in ("truth_ratio", "probability"))
    ]
    return f"no question of {' and '.join(bare) or 'a set'} has wrong answers (perturbed_answers)"


def doubts(lm: LM, plan: Plan, heard: Heard, first: Heard, patch: Patch | None) -> list[str]:
    """Warnings: what the figures do not show by themselves."""
    if patch is None:
        return []
    found = []
    items = plan.sets["forget"]
    if any(not entry.folds for entry in patch.entries.values()):
        found.append(ACCESS_CONTROL)
    if all(normal(heard.said[item.prompt]) == normal(item.case.forget.answer) for item in items):
        found.append(
            f"the edited model gives the very answer to each of the {len(items)} questions: nothing was forgotten, or "
            "the patch is not the one that was meant"
        )
    elif all(heard.said[item.prompt] == first.said[item.prompt] for item in items):
        found.append(
            f"the patch changes the answer to none of the {len(items)} questions; check that it is the one for them"
        )
    otherwise = asked_otherwise(lm, patch, "leave --plain (chat=False) out", "give --plain (chat=False)")
    found += [otherwise] if otherwise else []
    return found


def detail(plan: Plan, after: ForgetQuality | None, before: ForgetQuality | None) -> dict[str, Any]:
    """What is behind figures."""
    found: dict[str, Any] = {}
    if "generalization" in plan.wanted:
        items = plan.sets["forget"]
        own = sum(item.own for item in items)
        made = sum(not item.own and bool(item.paraphrases) for item in items)
        found["paraphrases"] = {
            "items": own + made,
            "of": len(items),
            "own": own,
            "by_rules": made,
            "rules": paraphrases.version() if made else None,
            "prompts": sum(len(item.paraphrases) for item in items),
        }
    tests = {"after": after, "before": before}
    if "forget_quality" in plan.wanted and after is not None:
        found["forget_quality"] = {when: None if test is None else test._asdict() for when, test in tests.items()}
    return found


def by_shown(plan: Plan, values: Values, patch: Patch | None) -> dict[str, Any]:
    """Locality on the questions to keep that the method was shown, and on those that it was not.

    Nothing where the patch does not tell which those are, or tells it in ids of another machine.
    """
    told = {} if patch is None else dict(patch.info.get("forget", {}))
    ours = {id_of(item.case.forget) for item in plan.sets["forget"]}
    marks, parts = set(told.get("retain_prompts", ())), dict[str, list[float | None]](shown=[], unseen=[])
    if not marks or "locality" not in plan.wanted or ours.isdisjoint(item["id"] for item in told["items"]):
        return {}
    for item, row in zip(plan.sets["retain"], values.retain, strict=True):
        parts["shown" if salted(item.case.forget.question) in marks else "unseen"].append(row["locality"])
    return {"locality": {name: {"value": mean(found), "n": len(found)} for name, found in parts.items()}}


def data(given: Mapping[str, Sequence[ForgetCase]], plan: Plan, *, sampled: bool) -> dict[str, Any]:
    """How many questions of each set there are, and under which salted hash."""
    return {
        name: {
            "given": len(cases),
            "asked": len(plan.sets[name]),
            "sampled": sampled,
            "hash": salted(digest([(case.forget.question, case.forget.answer) for case in cases])),
        }
        for name, cases in given.items()
        if cases
    }
