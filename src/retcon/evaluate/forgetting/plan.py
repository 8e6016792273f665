"""What to ask about forgetting: the sets of questions as token ids, made once for every model that is asked."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retcon.errors import RetconError
from retcon.evaluate.answers import Ids, Pair
from retcon.evaluate.plan import Encoder
from retcon.forget.paraphrases import paraphrased
from retcon.lm import LM
from retcon.metrics import FORGET_METRICS
from retcon.requests import ForgetCase

__all__ = [
    "DEFAULT",
    "GROUPS",
    "KEPT",
    "MEMBERSHIP",
    "NEAR",
    "TWIN",
    "UTILITY",
    "Item",
    "Plan",
    "make",
    "pairs",
    "prompts",
    "ranked",
    "resolve",
    "sloped",
]

DEFAULT = (
    "reliability", "generalization", "locality", "retain_drift", "refusal_rate", "over_refusal", "refusal_quality",
    "leakage",
)  # fmt: skip
"""The figures of a report for which no others were asked."""

MEMBERSHIP = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", "mia_grad_norm")
"""AUCs of attacks. `mia_reference` needs a reference; `mia_grad_norm` takes a backward for each question of both sets,
and is asked for by its name, by `membership` or by `all` alone."""
TWIN = ("forget_quality", "privleak", "rel_diff")
"""Figures that need a model trained without what is to be forgotten, and are shown where there is one."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(FORGET_METRICS),
    "rouge": ("rouge1_recall_porter", "rougel_recall_porter"),
    "membership": MEMBERSHIP,
}
"""Names that stand for several figures."""

UTILITY = ("retain", "real_authors", "world_facts")
"""The sets that model utility is made of."""

KEPT = ("locality", "retain_drift", "over_refusal")
"""Figures over the questions to keep."""
NEAR = ("locality_near",)
"""Figures over the near questions."""

_GRADIENT = "mia_grad_norm"
_PAIRED = frozenset({*MEMBERSHIP, "privleak", "rel_diff"})
_SCORED = _PAIRED - {_GRADIENT}
_ANSWER = _SCORED | {"probability", "exact_memorisation", "extraction_strength"}
_PARTS = {
    "forget_quality": ("truth_ratio",),
    "privleak": ("mia_min_k",),
    "rel_diff": ("mia_min_k",),
    "mia_reference": ("mia_loss",),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A question with what is asked around it."""

    case: ForgetCase
    prompt: Ids
    answer: Ids
    """Of the right answer, with the end token where there is one."""
    correct: Ids
    """Of its other wording, else of itself; as `answer`."""
    wrong: tuple[Ids, ...]
    paraphrases: tuple[tuple[str, Ids], ...] = ()
    """Other wordings of the question, as text and as ids."""
    own: bool = False
    """Whether those came with the set; else they are made by rules."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to ask of a model."""

    wanted: frozenset[str]
    """Names of `FORGET_METRICS`, those that others are made of included."""
    sets: Mapping[str, tuple[Item, ...]]
    """`forget`, `retain`, `near`, `holdout`, `real_authors` and `world_facts`, some of them empty."""
    ends: bool
    """Whether answers close with an end token."""
    max_new_tokens: int
    speaks: bool = True
    """Whether the model writes answers, and is not only asked how likely given ones are."""
    seed: int = 0
    """Of answers that are drawn."""
    learned: tuple[Item, ...] = ()
    """The questions to keep, where a twin must show that it has learned them."""

    def of_twin(self) -> "Plan":
        """What is asked of a model that was trained without what is to be forgotten."""
        wanted = {"probability", "truth_ratio", "mia_loss", "mia_zlib", "mia_min_k"}
        return dataclasses.replace(self, wanted=frozenset(wanted), speaks=False)


def resolve(asked: Iterable[str] | None, *, twin: bool = False, holdout: bool = False, near: bool = False) -> list[str]:
    """The figures asked for, in their order; without a word, the default ones and those that what is given allows.

    Raises:
        RetconError: a name is not known.
    """
    if asked is None:
        more = TWIN if twin and holdout else TWIN[:1] if twin else ()
        names = [*DEFAULT, *(NEAR if near else ()), *more]
    else:
        names = [name for group in asked for name in GROUPS.get(group, (group,))]
    for name in names:
        if name not in FORGET_METRICS:
            known = ", ".join([*GROUPS, *FORGET_METRICS])
            raise RetconError(f"there is no metric {name!r} of forgetting; choose from {known}")
    return [name for name in FORGET_METRICS if name in names]


def make(
    lm: LM,
    sets: Mapping[str, Sequence[ForgetCase]],
    asked: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int,
    twin: bool = False,
) -> Plan:
    """Turn the sets of questions into token ids.

    Args:
        lm: the model as it is asked.
        sets: the questions by set; those that no wanted figure needs are left out.
        asked: the figures wanted.
        max_new_tokens: of an answer.
        seed: of the paraphrases that are made, and of answers that are drawn.
        twin: whether a model without what is to be forgotten is at hand, which is to be checked against this one.
    """
    wanted = frozenset(asked).union(*(_PARTS.get(name, ()) for name in asked), ("probability",) if twin else ())
    if twin and sets["holdout"]:
        wanted |= {"mia_min_k"}
    encoder, end = Encoder(lm), str(lm.tokenizer.eos_token or "")

    def item(case: ForgetCase, rephrased: bool) -> Item:
        asked = case.forget.question
        others: tuple[str, ...] = case.paraphrases
        if rephrased and not others:
            others = paraphrased(case.forget, seed=seed)

        def target(text: str) -> Ids:
            return encoder.target(asked, text + end)

        return Item(
            case=case,
            prompt=encoder.ids(asked),
            answer=target(case.forget.answer),
            correct=target(case.paraphrased_answer or case.forget.answer),
            wrong=tuple(target(text) for text in case.perturbed_answers),
            paraphrases=tuple((text, encoder.ids(text)) for text in others) if rephrased else (),
            own=bool(case.paraphrases),
        )

    needed = {
        "forget": True,
        "retain": bool(wanted & {*KEPT, "model_utility"}),
        "near": bool(wanted & {*NEAR}),
        "holdout": bool(wanted & _PAIRED),
        "real_authors": "model_utility" in wanted,
        "world_facts": "model_utility" in wanted,
    }
    made = {
        name: tuple(item(case, name == "forget" and "generalization" in wanted) for case in sets.get(name, ()) if wants)
        for name, wants in needed.items()
    }
    learned = made["retain"] or tuple(item(case, False) for case in sets.get("retain", ())) if twin else ()
    return Plan(wanted, made, bool(end), max_new_tokens, seed=seed, learned=learned)


def prompts(plan: Plan) -> Iterator[Ids]:
    """What the model is to answer in its own words."""
    if plan.speaks:
        for item in plan.sets["forget"]:
            yield item.prompt
            yield from (ids for _, ids in item.paraphrases)
        for name in (*(UTILITY if "model_utility" in plan.wanted else UTILITY[:1]), "near"):
            yield from (item.prompt for item in plan.sets[name])


def pairs(plan: Plan) -> Iterator[Pair]:
    """Every (prompt, continuation) whose likelihood the wanted figures need."""
    wanted, sets = plan.wanted, plan.sets
    useful = UTILITY if "model_utility" in wanted else ()
    for name, ratios, answers in (
        ("forget", "truth_ratio" in wanted, bool(wanted & _ANSWER)),
        ("holdout", False, bool(wanted & _SCORED)),
        *((name, True, True) for name in useful),
    ):
        for item in sets[name]:
            if answers:
                yield item.prompt, item.answer
            if ratios and item.wrong:
                yield item.prompt, item.correct
                yield from ((item.prompt, wrong) for wrong in item.wrong)
    yield from ((item.prompt, item.answer) for item in plan.learned)


def ranked(plan: Plan) -> Iterator[Pair]:
    """Every (prompt, continuation) whose ranks or moments the wanted figures need."""
    if plan.wanted & {"mrr", "hit_100", "mia_min_k_plus_plus"}:
        yield from ((item.prompt, item.answer) for item in plan.sets["forget"])
    if "mia_min_k_plus_plus" in plan.wanted:
        yield from ((item.prompt, item.answer) for item in plan.sets["holdout"])


def sloped(plan: Plan) -> Iterator[Pair]:
    """Every (prompt, continuation) whose gradient the wanted figures need; none without holdout questions."""
    if _GRADIENT in plan.wanted and plan.sets["holdout"]:
        for name in ("forget", "holdout"):
            yield from ((item.prompt, item.answer) for item in plan.sets[name])
