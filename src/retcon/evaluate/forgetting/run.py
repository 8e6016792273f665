"""Measuring a model before and after it was made to forget, on the same questions."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retcon.errors import RetconError
from retcon.evaluate import provenance as origins
from retcon.evaluate.answers import Answers
from retcon.evaluate.forgetting import plan as planning
from retcon.evaluate.forgetting.heard import Heard, ask
from retcon.evaluate.forgetting.measure import Row, Values, figures, measure, quality
from retcon.evaluate.forgetting.plan import Item, Plan
from retcon.evaluate.forgetting.record import ForgetReport
from retcon.evaluate.forgetting.reference import Reference, marks
from retcon.evaluate.forgetting.remarks import by_shown, data, detail, doubts, reasons
from retcon.evaluate.forgetting.spread import RESAMPLES, clusters, intervals
from retcon.evaluate.forgetting.twin import answers_of, chosen, measured
from retcon.forget import detector
from retcon.forget.asking import asking
from retcon.forget.plan import ACCESS_CONTROL
from retcon.forget.privacy import id_of
from retcon.lm import LM
from retcon.metrics.forgotten import leaks
from retcon.patch import Patch, active, steady
from retcon.requests import ForgetCase, left_to_keep

__all__ = ["evaluate_forgetting"]


def evaluate_forgetting(
    lm: LM,
    forget: Sequence[ForgetCase],
    retain: Sequence[ForgetCase] = (),
    *,
    patch: Patch | None = None,
    metrics: Iterable[str] | None = None,
    twin: Reference | Patch | LM | None = None,
    near: Sequence[ForgetCase] = (),
    holdout: Sequence[ForgetCase] = (),
    real_authors: Sequence[ForgetCase] = (),
    world_facts: Sequence[ForgetCase] = (),
    chat: bool | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    sample: int | None = None,
    force_reference: bool = False,
    cache: bool = True,
    reveal: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> ForgetReport:
    """Measure whether a patch makes a model forget, and what it leaves alone.

    Every question is asked alone, in the form in which `retcon forget` writes it, and answered greedily. Each distinct
    prompt runs once a model, and what the unedited model answers is kept on disk, sealed under the question itself.
    Questions and answers stay out of the report unless `reveal` is set.

    Args:
        lm: the model; patches that are on already count as part of the unedited model.
        forget: the questions to forget, with how each is judged. One without paraphrases is judged by two made by rules
            (`retcon.forget.paraphrases`), and the report says so.
        retain: questions whose answers are to stay; those that are to be forgotten too are left out, with a warning.
        patch: put on for the second measurement; None measures the model alone, and `metrics` equals `before`.
        metrics: names of `retcon.metrics.FORGET_METRICS`, or `all`, `rouge`, `membership`; None is reliability,
            generalization, locality, retain_drift, refusal_rate, over_refusal, refusal_quality and leakage, and those
            that a twin or near questions allow. The dear one is mia_grad_norm, also in `all` and `membership`: with
            holdout questions, a backward for each of them and each to forget, and memory for as many gradients as
            there are weights.
        twin: a model trained without what is to be forgotten: a patch that makes it of `lm`, another model, or a record
            of one. It is checked, and refused where it cannot be such a model.
        near: questions close to those to forget whose answers are to stay; they are judged apart, by locality_near.
        holdout: questions that no model was trained on, for membership attacks.
        real_authors: questions with wrong answers to choose from, for model utility.
        world_facts: the same on the world.
        chat: whether questions go through the chat template; None for where there is one, as `retcon forget` decides.
        max_new_tokens: of each answer.
        seed: of the sample, the paraphrases and the intervals.
        sample: judge a seeded sample of this many questions of each set, in their order.
        force_reference: take a twin whose figures speak against it, with a warning.
        cache: whether to use and fill the cache of the unedited model's answers.
        reveal: whether the report tells questions, true answers and the model's own.
        provenance: what else the report should record.

    Raises:
        RetconError: there is nothing to forget, an unknown metric is asked for, or the twin is not the right one.
        PatchError: the patch does not fit the model.
    """
    started = time.perf_counter()
    if max_new_tokens < 1:
        raise RetconError(f"answers of {max_new_tokens} tokens say nothing; take at least 1")
    retain = left_to_keep(retain, forget)
    general = {"real_authors": real_authors, "world_facts": world_facts}
    given = {"forget": forget, "retain": retain, "near": near, "holdout": holdout, **general}
    asked = planning.resolve(metrics, twin=twin is not None, holdout=bool(holdout), near=bool(near))
    sets = chosen(given, sample, seed)
    lm = asking(lm, chat)
    plan = planning.make(lm, sets, asked, max_new_tokens=max_new_tokens, seed=seed, twin=twin is not None)

    unedited = answers_of(lm, cache=cache)
    first = ask(lm, plan, unedited)
    before = measure(plan, first, first)
    reference, warnings = _reference(lm, plan, twin, sets, retain, before, chat, force_reference, cache)
    asker, heard, after = unedited, first, before
    if patch is not None:
        asker = Answers(lm)
        with patch.on(lm.model), steady(lm.model):
            heard = ask(lm, plan, asker, first)
        after = measure(plan, heard, first)

    items = [item.case.forget for item in plan.sets["forget"]]
    said = [first.said[item.prompt] for item in plan.sets["forget"]]
    known = [leaks(text, item.answer, item.aliases) for text, item in zip(said, items, strict=True)]
    control = None if reference is None else reference.twin
    found, found_before = figures(asked, after, control), figures(asked, before, control)
    return ForgetReport(
        n=len(items),
        known=sum(known),
        metrics=found,
        before=found_before,
        seconds=round(time.perf_counter() - started, 3),
        intervals=intervals(asked, after, control, plan.sets, seed),
        before_intervals=intervals(asked, before, control, plan.sets, seed),
        not_applicable=reasons(found, plan, after, given, reference),
        before_not_applicable=reasons(found_before, plan, before, given, reference),
        warnings=[*doubts(lm, plan, heard, first, patch), *warnings],
        details=detail(plan, quality(after, control), quality(before, control)) | by_shown(plan, after, patch),
        detector=detector.quality(),
        provenance={
            "model": origins.model(lm),
            "patch": origins.of_patch(patch),
            "kind": _kind(patch),
            "weights": _states(lm, patch),
            "asked": "chat" if lm.chat else "plain",
            "decoding": {
                "greedy": True,
                "max_new_tokens": max_new_tokens,
                "cut": {"before": len(first.cut), "after": len(heard.cut)},
            },
            "data": data(given, plan, sampled=sample is not None),
            "end_token": "closes answers, but is not counted by exact_memorisation and extraction_strength"
            if plan.ends
            else "the tokenizer has none",
            "intervals": {"level": 0.95, "resamples": RESAMPLES, "drawn": _drawn(plan.sets)},
            "reference": None if reference is None else {**reference.model, "n": dict(reference.n)},
            "seed": seed,
            "speed": {
                "tokens": asker.tokens,
                "seconds": round(asker.seconds, 3),
                "answers_from_cache": unedited.cached,
            },
            "versions": origins.versions(),
            "code": origins.code(),
            "hardware": origins.hardware(),
            **(provenance or {}),
        },
        items=_records(plan, known, (before, first), (after, heard), reveal=reveal),
    )


def _reference(
    lm: LM,
    plan: Plan,
    twin: Reference | Patch | LM | None,
    sets: Mapping[str, Sequence[ForgetCase]],
    retain: Sequence[ForgetCase],
    before: Values,
    chat: bool | None,
    force: bool,
    cache: bool,
) -> tuple[Reference | None, list[str]]:
    """The record of the twin, found fit, and what must be said of it."""
    if twin is None:
        return None, []
    now = marks(lm, sets, retain)
    if isinstance(twin, Reference):
        reference = twin
    elif isinstance(twin, Patch):
        reference = measured(lm, plan, now, twin, cache=cache)
    else:
        other = asking(twin, chat)
        marks(other, sets, retain).check(now)  # a model of other tokens would be asked something else
        reference = measured(other, plan, now, cache=cache)
    tuned = figures(["probability"], before, None)["probability"]
    return reference, reference.problems(now, tuned, before.learned, force=force)


def _kind(patch: Patch | None) -> str | None:
    """What kind of forgetting it is, in words: the patch's own, and access control whatever it says where it does not
    fold."""
    if patch is None:
        return None
    if any(not entry.folds for entry in patch.entries.values()):
        return ACCESS_CONTROL
    kind = dict(patch.info.get("forget", {})).get("kind")
    return None if kind is None else str(kind)


def _states(lm: LM, patch: Patch | None) -> dict[str, Any]:
    """Which weights ran, and with which patches on: two runs with one state have one answer."""
    on = [item.id for item in active(lm.model)]
    after = [*on, *([] if patch is None else [patch.id])]
    return {
        "before": {"sha256": lm.fingerprint(), "patches": on},
        "after": {"sha256": lm.fingerprint(), "patches": after},
    }


def _drawn(sets: Mapping[str, Sequence[Item]]) -> dict[str, dict[str, int]]:
    """How many clusters and questions each set has for the bootstrap."""
    return {
        name: {"clusters": len(set(clusters(items))), "questions": len(items)} for name, items in sets.items() if items
    }


def _records(
    plan: Plan,
    known: Sequence[bool],
    before: tuple[Values, Heard],
    after: tuple[Values, Heard],
    *,
    reveal: bool,
) -> list[dict[str, Any]]:
    """A record of each question to forget and to keep."""

    def said(prompt: tuple[int, ...]) -> dict[str, str]:
        return {"before": before[1].said[prompt], "after": after[1].said[prompt]}

    def record(kind: str, item: Item, now: Row, then: Row) -> dict[str, Any]:
        found: dict[str, Any] = {"id": id_of(item.case.forget), "set": kind}
        if reveal:
            found |= {"question": item.case.forget.question, "gold": item.case.forget.answer, **said(item.prompt)}
            if item.paraphrases:
                found["paraphrases"] = [{"question": text, **said(ids)} for text, ids in item.paraphrases]
        return found | {"metrics": now, "metrics_before": then}

    forget = zip(plan.sets["forget"], after[0].forget, before[0].forget, known, strict=True)
    found = [
        record("forget", item, now, then) | {"known": knew, **_told(item, after[1].said[item.prompt])}
        for item, now, then, knew in forget
    ]
    for name, now, then in (("retain", after[0].retain, before[0].retain), ("near", after[0].near, before[0].near)):
        found += [record(name, *row) for row in zip(plan.sets[name], now, then, strict=True)]
    return found


def _told(item: Item, said: str) -> dict[str, bool]:
    """Whether an answer tells the secret, and whether it declines."""
    asked = item.case.forget
    return {"leaked": leaks(said, asked.answer, asked.aliases), "refused": detector.refuses(said)}
