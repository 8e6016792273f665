"""All that is decided before a method runs: subjects, targets, groups, edits; and what the patch tells of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retcon.errors import RetconError
from retcon.forget.kept import FILE, row_name, write_targets
from retcon.forget.mapping import edits_of, keys_of, likeness, placed
from retcon.forget.merging import MODES, Mode, Way, cut_long, grouped, shared_target, why_not
from retcon.forget.privacy import id_of
from retcon.forget.subjects import SOURCES, Subject, find_subjects
from retcon.forget.target import Target
from retcon.forget.targets import ACCEPTED, FIXED, targets_of
from retcon.forget.usual import TARGET
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import Edit, ForgetCase
from retcon.storage import salted

__all__ = [
    "ACCESS_CONTROL",
    "SUPPRESSION",
    "TRAINED",
    "Kept",
    "Plan",
    "Recipe",
    "keep_targets",
    "kept_by",
    "planned",
    "question_of",
    "told",
]

Kept = str | tuple[str, str]
"""What is to stay: a question, or one with its answer."""

SUPPRESSION = (
    "Suppression: the model has been taught to refuse, and nothing here shows that the answers have left its weights."
)
TRAINED = (
    "Suppression by training: the answers have been made less likely, and nothing here shows that they have left the "
    "weights."
)
ACCESS_CONTROL = (
    "Access control: the weights are as they were and still hold the answers; whoever can take the patch off has them "
    "back. Use it to test behaviour, not to comply with a duty to erase."
)

_ANY = Target(FIXED, "fixed", "fixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How questions become edits."""

    target: str = TARGET
    """The family of targets; see `retcon.forget.targets`."""
    merge_queries: int | Literal["all"] = 1
    """Questions that share one edit at most."""
    merge_mode: Mode = "concat"
    """`concat`: one prompt of all questions of a group; `mean_key`: prompts apart, one shift."""
    merge_by: Way = "group"
    """Which questions go together."""
    seed: int = 0
    """Of lines drawn, of random groups, and of what the model writes."""
    keep_questions: bool = False
    """Whether the patch tells the questions and their subjects; it never tells the answers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a method is asked for."""

    edits: list[Edit]
    groups: list[list[int]]
    """Positions of the questions that share an edit."""
    targets: list[Target]
    """Of each question."""
    own: list[Target]
    """Of each question by itself, before groups shared one."""
    subjects: list[Subject]
    """Of each question."""
    told: dict[str, Any]
    """What the patch tells, in JSON types; without any text of a question or an answer."""


def planned(
    lm: LM,
    cases: Sequence[ForgetCase],
    method: Any,
    recipe: Recipe,
    *,
    retain: Sequence[Kept] = (),
    given: Mapping[str, str | Target] | None = None,
    cache: bool = True,
) -> Plan:
    """The edits that make a model forget.

    Args:
        lm: the model, unedited or with the state on that is gone on from.
        cases: the questions; of what a judge sees, wrong answers alone are looked at, for the family `incorrect`.
        method: the method that is to make the edits.
        recipe: how.
        retain: questions to keep, which subjects are told from.
        given: the user's own targets, by a question's id or text, or whole ones of an earlier run.
        cache: whether refusals that the model has written before are taken, and what it writes now is kept.

    Raises:
        RetconError: there is no question, an option is none, or the method cannot merge so.
        RequestError: a question has no target, or a group has several.
    """
    if not cases:
        raise RetconError("there is nothing to forget; give at least one question")
    if getattr(method, "quotes", False) and not recipe.keep_questions:
        raise RetconError(
            f"a patch of {method.name} holds the questions word for word, as what it shows the model; ask to keep them "
            "(--keep-questions, keep_questions=True), or take another method"
        )
    if recipe.merge_mode not in MODES:
        raise RetconError(f"questions cannot be merged in the mode {recipe.merge_mode!r}; use {' or '.join(MODES)}")
    size = None if recipe.merge_queries == "all" else recipe.merge_queries
    reason = why_not(method, recipe.merge_mode) if size != 1 else None
    if reason is not None:
        raise RetconError(f"{reason}; leave merging out, or merge otherwise")
    items = [case.forget for case in cases]
    questions = [question_of(one) for one in retain]
    subjects = placed(lm, items, find_subjects(items, questions))
    bare = edits_of(lm, items, [_ANY] * len(items), subjects)  # keys are read at prompts, whatever is said
    keys = keys_of(lm, bare, method)
    groups = grouped(items, subjects, size, recipe.merge_by, seed=recipe.seed, keys=keys)
    if recipe.merge_mode == "concat":
        groups = cut_long(lm, items, groups)
    wrong = [case.perturbed_answers for case in cases]
    closes = next((name for name in ("eos", "end_token") if getattr(method.config, name, False)), None)
    if recipe.target == "eos" and closes is not None:
        raise RetconError(
            f"{method.name} closes every answer with the end token itself ({closes}), so that eos leaves it nothing to "
            f"say; add --set {closes}=false ({closes}=False), or take another family of targets"
        )
    alone = targets_of(lm, items, subjects, recipe.target, seed=recipe.seed, given=given, wrong=wrong, cache=cache)
    targets = list(alone)
    for group in groups:
        one = shared_target(lm, items, subjects, alone, group, recipe.target, recipe.seed)
        for i in group:
            targets[i] = one
    edits = edits_of(
        lm, items, targets, subjects, groups, mode=recipe.merge_mode, keep_questions=recipe.keep_questions,
        end=closes is None,
    )  # fmt: skip
    whole = Plan(edits, groups, targets, alone, subjects, {})
    facts = _told(whole, recipe, method, [id_of(item) for item in items])
    asked = sum(item.subject is not None for item in items)
    facts["retain_prompts"] = [salted(question) for question in questions] if _shown(method) else []
    facts["subjects_not_in_question"] = asked - facts["subjects"]["given"]
    facts["end_token"] = closes is None and bool(lm.tokenizer.eos_token)
    facts["mean_cosine_of_keys"] = None if keys is None else likeness(keys)
    return replace(whole, told=facts)


def question_of(one: Kept) -> str:
    """The question of what is to stay."""
    return one if isinstance(one, str) else one[0]


def kept_by(method: Any, retain: Sequence[Kept]) -> tuple[Any, ...]:
    """What is to stay as the method takes it: an editor the questions alone, one that unlearns their answers too."""
    if getattr(method, "unlearns", False):
        return tuple(retain)
    return tuple(map(question_of, retain))


def _shown(method: Any) -> bool:
    """Whether a method makes use of what is to stay."""
    return bool(getattr(method, "uses_retain", True))


def told(made: Patch, plan: Plan) -> Patch:
    """The patch, whose info tells how it forgets."""
    return replace(made, info={**made.info, "forget": plan.told})


def keep_targets(folder: str | Path, lm: LM, cases: Sequence[ForgetCase], plan: Plan, recipe: Recipe) -> Path:
    """Write `targets.jsonl` into a patch's folder, for later runs to read; it tells no question and no answer.

    Args:
        folder: of the patch.
        lm: the model that the plan was made for.
        cases: the questions of the plan.
        plan: what was decided.
        recipe: how.
    """
    return write_targets(
        Path(folder) / FILE, [case.forget for case in cases], plan.subjects, plan.own, family=recipe.target,
        seed=recipe.seed, model=lm.fingerprint(), keep_questions=recipe.keep_questions,
    )  # fmt: skip


def _kind(method: Any) -> str:
    """What kind of forgetting a method does."""
    if getattr(method, "routes", False):
        return ACCESS_CONTROL
    return TRAINED if getattr(method, "unlearns", False) else SUPPRESSION


def _told(plan: Plan, recipe: Recipe, method: Any, ids: Sequence[str]) -> dict[str, Any]:
    own = [target for target in plan.own if target.source != "given"]
    accepted = None
    family = recipe.target
    if family == ACCEPTED and own:
        accepted = round(sum(target.source == ACCEPTED for target in own) / len(own), 4)
        family = row_name(plan.targets)  # a row is named by what most of it is, after groups shared their targets
    number = {i: place for place, group in enumerate(plan.groups) for i in group}
    found = Counter(subject.source for subject in plan.subjects)
    merged = any(len(group) > 1 for group in plan.groups)
    return {
        "kind": _kind(method),
        "questions": len(ids),
        "edits": len(plan.groups),
        "targets": family,
        "targets_asked": recipe.target,
        "accepted": accepted,
        "target_sources": dict(Counter(target.source for target in plan.targets)),
        "subjects": {source: found[source] for source in SOURCES},
        "merge": {
            "queries": recipe.merge_queries,
            "mode": recipe.merge_mode if merged else None,
            "by": recipe.merge_by if merged else None,
            "sizes": [len(group) for group in plan.groups],
        },
        "items": [
            {
                "id": name,
                "edit": number[i],
                "subject": subject.source,
                "target": target.source,
                "attempt": first.attempt,
                "failed": list(first.failed),
            }
            for i, (name, subject, target, first) in enumerate(
                zip(ids, plan.subjects, plan.targets, plan.own, strict=True)
            )
        ],
    }
