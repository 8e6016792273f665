"""From what a model said to figures: a value an item, and what several of them come to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from retcon.evaluate.answers import Pair
from retcon.evaluate.forgetting.heard import Heard
from retcon.evaluate.forgetting.plan import KEPT, MEMBERSHIP, NEAR, UTILITY, Item, Plan
from retcon.forget.checks import judged, not_degenerate
from retcon.forget.detector import refuses
from retcon.metrics import FORGET_METRICS
from retcon.metrics.fluency import fluency, words
from retcon.metrics.forgotten import drift, forgotten, kept, leaks
from retcon.metrics.membership import (
    auc,
    loss_score,
    min_k,
    min_k_plus_plus,
    privleak,
    reference_score,
    rel_diff,
    zlib_score,
)
from retcon.metrics.memorised import (
    exact_memorisation,
    extraction_strength,
    hit_at,
    mean_reciprocal_rank,
    probability,
    probability_with_options,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_retain,
)
from retcon.metrics.rouge import rouge1_recall, rougel_recall
from retcon.metrics.summary import mean
from retcon.metrics.twin import ForgetQuality, Utility, forget_quality, model_utility

__all__ = ["Row", "Twin", "Values", "attacks", "evenness", "figures", "measure", "quality"]

Value = float | None
Row = dict[str, Value]

EVEN = 0.9
"""Evenness that is enough for whatever model: a word or two may come again."""


@dataclass(frozen=True, slots=True)
class Twin:
    """What a model without what is to be forgotten came to."""

    ratios: Sequence[Value]
    """R of each forget item."""
    auc: Value
    """Of `mia_min_k`."""
    losses: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    """-mean log p of a token, in nats, of each answer of `forget` and `holdout`; empty where the record has none."""


@dataclass(frozen=True, slots=True)
class Values:
    """What one model, edited or not, came to; rows are in the order of the items."""

    forget: list[Row]
    """A value for each figure over the forget set; None where the item is not judged by it."""
    retain: list[Row]
    utility: Mapping[str, list[Row]]
    """For each set of model utility: `probability`, `rouge` and `truth_ratio` of each item."""
    ratios: list[Value]
    """R of each forget item; empty where it was not wanted."""
    membership: Mapping[str, tuple[list[float], list[float]]]
    """For each attack that needs no twin: the scores of forget and of holdout items."""
    near: list[Row] = field(default_factory=list)
    """As `retain`, of the near questions."""
    no_slopes: str = ""
    """Why `mia_grad_norm` is not there, where the model has no gradients."""
    learned: Value = None
    """Mean probability of the answers to keep, where a twin must have learned them."""


def measure(plan: Plan, heard: Heard, first: Heard) -> Values:
    """The values of one model.

    Args:
        plan: what was asked.
        heard: of this model.
        first: of the unedited model, which this may be.
    """
    wanted = plan.wanted
    ratios = [_ratio(item, heard) for item in plan.sets["forget"]] if "truth_ratio" in wanted else []
    least = _least(plan, first) if plan.speaks else 0.0
    forget = []
    for n, item in enumerate(plan.sets["forget"]):
        row = _spoken(item, heard, first, least) if plan.speaks else {}
        row |= _held(item, heard, plan.ends, wanted)
        if ratios:
            row["truth_ratio"] = truth_ratio_forget([ratios[n]])
        forget.append({name: row[name] for name in FORGET_METRICS if name in row and name in wanted})
    retain = [_kept(item, heard, first, wanted) for item in plan.sets["retain"]] if plan.speaks else []
    sets = UTILITY if "model_utility" in wanted else ()
    utility = {name: [_useful(item, heard, name != "retain") for item in plan.sets[name]] for name in sets}
    asked = plan.sets.get("near", ()) if plan.speaks else ()
    near: list[Row] = [{NEAR[0]: kept(heard.said[item.prompt], first.said[item.prompt])} for item in asked]
    learned = mean(probability(heard.scores[item.prompt, item.answer].logprobs) for item in plan.learned)
    return Values(forget, retain, utility, ratios, _membership(plan, heard), near, heard.no_slopes, learned)


def _least(plan: Plan, first: Heard) -> float:
    """How even a fluent refusal is at least: as even as the unedited model's answers, or as `EVEN`."""
    return min([EVEN, *(evenness(first.said[item.prompt]) for item in plan.sets["forget"])])


def evenness(text: str) -> float:
    """How little a text repeats itself, whatever its length: 1 where no two and no three words come twice.

    `fluency` of the text over that of as many words which never repeat.

    >>> evenness("No word comes twice here."), evenness("no no no no no")
    (1.0, 0.0)
    """
    n = len(words(text))
    most = (2 / 3 * math.log2(max(n - 1, 1)) + 4 / 3 * math.log2(max(n - 2, 1))) / 2
    return min(1.0, fluency(text) / most) if most else 1.0


def _spoken(item: Item, heard: Heard, first: Heard, least: float) -> Row:
    """Of what the model says to a question to forget, and to its other wordings."""
    asked, said = item.case.forget, heard.said[item.prompt]
    secrets = asked.answer, asked.aliases
    declines = refuses(said)
    fluent = not_degenerate(asked, said).ok and evenness(said) >= least
    knew = leaks(first.said[item.prompt], *secrets)
    return {
        "reliability": forgotten(said, asked.answer),
        "generalization": mean(forgotten(heard.said[ids], asked.answer) for _, ids in item.paraphrases),
        "refusal_rate": float(declines),
        "refusal_quality": mean(map(float, judged(asked, said, fluent=fluent))) if declines else None,
        "leakage": float(leaks(said, *secrets)) if knew else None,
        "leak_10": float(leaks(heard.drawn[item.prompt], *secrets)) if knew and heard.drawn else None,
        "rouge1_recall_porter": rouge1_recall(said, asked.answer),
        "rougel_recall_porter": rougel_recall(said, asked.answer),
    }


def _held(item: Item, heard: Heard, ends: bool, wanted: frozenset[str]) -> Row:
    """Of how firmly the model holds an answer; memorisation and extraction leave the end token out."""
    row: Row = {}
    pair: Pair = (item.prompt, item.answer)
    if pair in heard.scores:
        scored = heard.scores[pair]
        hits = scored.hits[:-1] if ends else scored.hits
        row["probability"] = probability(scored.logprobs)
        row["exact_memorisation"] = exact_memorisation(hits)
        row["extraction_strength"] = extraction_strength(hits)
    if pair in heard.details and wanted & {"mrr", "hit_100"}:
        row["mrr"] = mean_reciprocal_rank(heard.details[pair].ranks)
        row["hit_100"] = hit_at(heard.details[pair].ranks)
    return row


def _kept(item: Item, heard: Heard, first: Heard, wanted: frozenset[str]) -> Row:
    """Of what the model says to a question to keep, beside the unedited model."""
    now, before = heard.said[item.prompt], first.said[item.prompt]
    row: Row = {"locality": kept(now, before), "over_refusal": float(refuses(now)) - float(refuses(before))}
    if "retain_drift" in wanted:
        pair = item.prompt, first.own[item.prompt]
        row["retain_drift"] = drift(heard.scores[pair].logprobs, first.scores[pair].logprobs) if pair[1] else None
    return {name: row[name] for name in KEPT if name in wanted}


def _useful(item: Item, heard: Heard, options: bool) -> Row:
    """What model utility is made of; among wrong answers where the set gives them as options."""
    own = heard.scores[item.prompt, item.answer].logprobs
    others = [heard.scores[item.prompt, wrong].logprobs for wrong in item.wrong]
    return {
        "probability": probability_with_options(own, others) if options else probability(own),
        "rouge": rougel_recall(heard.said[item.prompt], item.case.forget.answer),
        "truth_ratio": truth_ratio_retain([_ratio(item, heard)]),
    }


def _ratio(item: Item, heard: Heard) -> Value:
    """R of an item; None where it has no wrong answer."""
    if not item.wrong:
        return None
    wrong = [heard.scores[item.prompt, ids].logprobs for ids in item.wrong]
    return truth_ratio(heard.scores[item.prompt, item.correct].logprobs, wrong)


def _membership(plan: Plan, heard: Heard) -> dict[str, tuple[list[float], list[float]]]:
    """The scores of each wanted attack on answers, given their questions."""

    def score(item: Item, attack: str) -> Value:
        pair = item.prompt, item.answer
        if attack == "mia_grad_norm":
            return None if math.isnan(heard.slopes[pair]) else heard.slopes[pair]
        logprobs = heard.scores[pair].logprobs
        if attack == "mia_min_k_plus_plus":
            return min_k_plus_plus(logprobs, heard.details[pair].means, heard.details[pair].variances)
        if attack == "mia_zlib":
            return zlib_score(logprobs, item.case.forget.answer)
        return loss_score(logprobs) if attack == "mia_loss" else min_k(logprobs)

    def scores(name: str, attack: str) -> list[float]:
        found = (score(item, attack) for item in plan.sets[name])
        return [value for value in found if value is not None]

    missing = {"mia_reference", *(("mia_grad_norm",) if heard.no_slopes else ())}
    wanted = [attack for attack in MEMBERSHIP if attack in plan.wanted - missing and plan.sets["holdout"]]
    return {attack: (scores("forget", attack), scores("holdout", attack)) for attack in wanted}


def attacks(values: Values, twin: Twin | None) -> dict[str, tuple[list[float], list[float]]]:
    """The scores of each attack on forget and on holdout items, `mia_reference` where a twin tells its losses."""
    found = dict(values.membership)
    if "mia_loss" in found and twin is not None and twin.losses:
        forget, holdout = found["mia_loss"]
        found["mia_reference"] = _less(forget, twin.losses["forget"]), _less(holdout, twin.losses["holdout"])
    return found


def _less(losses: Sequence[float], reference: Sequence[Value]) -> list[float]:
    """The losses of some items, each minus that of the reference where it has one."""
    both = zip(losses, reference, strict=True)
    found = (None if other is None else reference_score([-own], [-other]) for own, other in both)
    return [value for value in found if value is not None]


def figures(asked: Iterable[str], values: Values, twin: Twin | None) -> dict[str, Value]:
    """Each figure asked for; None where it does not apply."""
    attacked = {name: auc(*scores) for name, scores in attacks(values, twin).items()}
    rest = {
        "privleak": partial(privleak, attacked.get("mia_min_k"), None if twin is None else twin.auc),
        "rel_diff": partial(rel_diff, attacked.get("mia_min_k"), None if twin is None else twin.auc),
        "model_utility": partial(_utility, values),
    }
    found: dict[str, Value] = {}
    for name in asked:
        if name in KEPT:
            found[name] = mean(row.get(name) for row in values.retain)
        elif name in NEAR:
            found[name] = mean(row.get(name) for row in values.near)
        elif name in MEMBERSHIP:
            found[name] = attacked.get(name)
        elif name == "forget_quality":
            test = quality(values, twin)
            found[name] = None if test is None else test.p
        elif name in rest:
            found[name] = rest[name]()
        else:
            found[name] = mean(row.get(name) for row in values.forget)
    return found


def quality(values: Values, twin: Twin | None) -> ForgetQuality | None:
    """The test of truth ratios against those of the twin; None where one side has none."""
    if twin is None:
        return None
    mine, theirs = ([ratio for ratio in side if ratio is not None] for side in (values.ratios, twin.ratios))
    return forget_quality(mine, theirs)


def _utility(values: Values) -> Value:
    if set(values.utility) != set(UTILITY):
        return None
    return model_utility(
        *(Utility(*(mean(row[part] for row in values.utility[name]) for part in Utility._fields)) for name in UTILITY)
    )
