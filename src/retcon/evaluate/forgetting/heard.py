"""One round of questions: all that the plan wants of a model, as it is now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retcon import tokens
from retcon.evaluate.answers import Answers, Ids, Pair
from retcon.evaluate.detail import Detail
from retcon.evaluate.forgetting.plan import Plan, pairs, prompts, ranked, sloped
from retcon.evaluate.gradients import NoGradient
from retcon.forget.samples import sampled
from retcon.forward import Scored
from retcon.lm import LM

__all__ = ["SAMPLES", "Heard", "ask"]

SAMPLES = 10
"""Answers drawn to each question for `leak_10`."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model said, and how likely it found what was held out to it."""

    said: Mapping[Ids, str]
    """Its own answer to each prompt, on one line."""
    own: Mapping[Ids, Ids]
    """The same in ids."""
    scores: Mapping[Pair, Scored]
    details: Mapping[Pair, Detail]
    cut: frozenset[Ids]
    """Prompts whose answers were cut off at the most tokens."""
    drawn: Mapping[Ids, Sequence[str]] = field(default_factory=dict)
    """Answers drawn at random to the prompts to forget, where they are wanted."""
    slopes: Mapping[Pair, float] = field(default_factory=dict)
    """`gradient_scores` of the answers to forget and of holdout, where they are wanted; NaN where not finite."""
    no_slopes: str = ""
    """Why there are none, where they are wanted."""


def ask(lm: LM, plan: Plan, answers: Answers, first: Heard | None = None) -> Heard:
    """Put all of the plan's questions, each distinct one once.

    Args:
        lm: the model as it is now.
        plan: the questions.
        answers: what asks it.
        first: of the unedited model; None where that is this one.
    """
    wanted = dict.fromkeys(prompts(plan))
    said = answers.greedy(wanted, plan.max_new_tokens, stop_at_eos=True) if wanted else {}
    own = said if first is None else first.own
    slopes, no_slopes = _slopes(plan, answers)
    return Heard(
        said={prompt: " ".join(tokens.decode(lm, list(ids)).split()) for prompt, ids in said.items()},
        own=said,
        scores=answers.score([*pairs(plan), *_answered(plan, own)]),
        details=answers.detailed(ranked(plan)),
        cut=frozenset(prompt for prompt, ids in said.items() if len(ids) == plan.max_new_tokens),
        drawn=_drawn(lm, plan) if plan.speaks and "leak_10" in plan.wanted else {},
        slopes=slopes,
        no_slopes=no_slopes,
    )


def _slopes(plan: Plan, answers: Answers) -> tuple[dict[Pair, float], str]:
    """The gradients of the answers, else why there are none."""
    try:
        return answers.gradients(sloped(plan)), ""
    except NoGradient as error:
        return {}, str(error)


def _answered(plan: Plan, own: Mapping[Ids, Ids]) -> list[Pair]:
    """The unedited model's answers to the questions to keep, where their likelihood is wanted."""
    if not plan.speaks or "retain_drift" not in plan.wanted:
        return []
    return [(item.prompt, own[item.prompt]) for item in plan.sets["retain"] if own[item.prompt]]


def _drawn(lm: LM, plan: Plan) -> dict[Ids, list[str]]:
    """Ten answers to each prompt to forget."""
    asked = list(dict.fromkeys(item.prompt for item in plan.sets["forget"]))
    found = sampled(lm, asked, samples=SAMPLES, max_new_tokens=plan.max_new_tokens, seed=plan.seed)
    return dict(zip(asked, found, strict=True))
