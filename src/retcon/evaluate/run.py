"""Measuring a model before and after a patch, on the same questions."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retcon import forward, tokens
from retcon.caches import Store
from retcon.errors import RetconError
from retcon.evaluate import plan as planning
from retcon.evaluate import prefixes as prefixing
from retcon.evaluate import provenance as origins
from retcon.evaluate.answers import Answers, Ids, place
from retcon.evaluate.measure import Values, figures, intervals, measure
from retcon.evaluate.plan import Plan
from retcon.evaluate.record import Report
from retcon.evaluate.sampling import sampled
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.patch import Patch
from retcon.requests import Case

__all__ = ["evaluate"]

ANSWER_TOKENS = 12
"""Length of the answers that a report shows."""

SHOWN = 100
"""For how many edit prompts, and how many changed neighbours, a report shows answers: failures first."""


def evaluate(
    lm: LM,
    cases: Sequence[Case],
    *,
    patch: Patch | None = None,
    metrics: Iterable[str] | None = None,
    seed: int = 0,
    text: str | Path | None = None,
    sample: int | None = None,
    prefixes: Sequence[str] | None = None,
    compare: bool = True,
    cache: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Report:
    """Measure what a patch achieves and what it harms.

    All questions of all figures are collected first, and each distinct prompt runs once a model. What the unedited
    model answers is kept on disk by content, so that the next patch is measured in half the time. Every case is judged
    with the whole patch on: the figures are those of the final model.

    Args:
        lm: the model; patches that are on already count as part of the unedited model.
        cases: how each edit is judged. What a case lacks (an old answer, paraphrases, neighbours) it is not judged by.
        patch: put on for the second measurement; None measures the model alone, and `metrics` equals `before`.
        metrics: names of `retcon.metrics.METRICS`; None is all.
        seed: of the sample of cases, the prefixes and the intervals.
        text: for perplexity: a text, a path, or None for the text shipped with the package. Windows of 512 tokens, the
            first 8,000 tokens.
        sample: judge a seeded sample of this many cases, in their order.
        prefixes: texts for `efficacy_prefixed`; None lets the unedited model write ten, an empty list leaves it out.
        compare: whether to measure the unedited model too.
        cache: whether to use and fill the cache of the unedited model's answers.
        provenance: what else the report should record, such as the file's hash and the command.

    Returns:
        The figures with 95% bootstrap intervals, clustered by subject, and a record of each case.

    Raises:
        RetconError: there is no case, an unknown metric is asked for, or the text cannot be read.
        PatchError: the patch does not fit the model.
    """
    started = time.perf_counter()
    named = list(METRICS) if metrics is None else list(metrics)
    wanted = planning.resolve(named)
    asked = [name for name in METRICS if name in named]
    chosen = _sampled(cases, sample, seed)
    unedited = Answers(lm, Store(place(lm)) if cache else None)
    written = _prefixes(lm, unedited, prefixes, seed) if "efficacy_prefixed" in wanted else []
    plan = planning.make(lm, chosen, wanted, written, text)

    before = measure(lm, plan, unedited, None) if compare and patch is not None else None
    said: dict[Ids, str] = {}
    if patch is None:
        asker, values = unedited, measure(lm, plan, unedited, None)
    else:
        asker = Answers(lm)
        neighbours = [question.prompt for case in plan.cases for question in case.neighbours]
        first = _first_tokens(lm, unedited, neighbours) if "specificity" in wanted else {}
        with patch.on(lm.model):
            values = measure(lm, plan, asker, first)
            said = _said(lm, asker, _to_show(plan, values))
    said_before = _said(lm, unedited, _to_show(plan, values)) if compare or patch is None else {}

    subjects = [case.edit.subject for case in chosen]
    after_figures, after_intervals = _summary(asked, wanted, values, subjects, seed)
    figures_before, intervals_before = _summary(asked, wanted, values if patch is None else before, subjects, seed)
    return Report(
        n=len(chosen),
        metrics=after_figures,
        before=figures_before,
        seconds=round(time.perf_counter() - started, 3),
        intervals=after_intervals,
        before_intervals=intervals_before,
        provenance={
            "model": origins.model(lm),
            "patch": origins.of_patch(patch),
            "seed": seed,
            "cases": {"scored": len(chosen), "given": len(cases), "sampled": sample is not None},
            "prefixes": {"written_by": "the unedited model" if prefixes is None else "the user", "texts": written},
            "text": _text_record(plan, text),
            "fluency": {
                "cases": sum(case.opening is not None for case in plan.cases),
                "tokens": planning.FLUENCY_TOKENS,
                "decoding": "greedy",
            },
            "speed": {
                "tokens": asker.tokens,
                "seconds": round(asker.seconds, 3),
                "tokens_per_second": round(asker.tokens / asker.seconds, 1) if asker.seconds else None,
                "answers_from_cache": unedited.cached,
            },
            "versions": origins.versions(),
            "hardware": origins.hardware(),
            **(provenance or {}),
        },
        cases=_records(chosen, plan, values, before, said, said_before),
    )


def _sampled(cases: Sequence[Case], size: int | None, seed: int) -> list[Case]:
    if not cases:
        raise RetconError("there are no cases to judge by; give at least one")
    return sampled(cases, size, seed)


def _prefixes(lm: LM, unedited: Answers, prefixes: Sequence[str] | None, seed: int) -> list[str]:
    return prefixing.written(lm, unedited, seed) if prefixes is None else prefixing.checked(prefixes)


def _first_tokens(lm: LM, unedited: Answers, prompts: Sequence[Ids]) -> dict[Ids, Ids]:
    """What the unedited model says first at each prompt; what follows an end of text is not said any more."""
    ends = forward.end_ids(lm)
    said = unedited.greedy(prompts, planning.FIRST_TOKENS, stop_at_eos=False)
    return {
        prompt: ids[: next((n for n, token in enumerate(ids, 1) if token in ends), len(ids))]
        for prompt, ids in said.items()
    }


def _to_show(plan: Plan, values: Values) -> list[Ids]:
    """The prompts whose answers a report shows: edits that failed, other edits, neighbours that changed."""
    edits = []
    if "efficacy" in plan.wanted:
        order = sorted(range(len(plan.cases)), key=lambda n: values.cases[n]["efficacy"] or 0.0)
        edits = [plan.cases[n].edit.prompt for n in order[:SHOWN]]
    return edits + [question.prompt for questions in values.changed for question in questions][:SHOWN]


def _said(lm: LM, answers: Answers, prompts: Sequence[Ids]) -> dict[Ids, str]:
    said = answers.greedy(prompts, ANSWER_TOKENS, stop_at_eos=True)
    return {prompt: " ".join(tokens.decode(lm, list(ids)).split()) for prompt, ids in said.items()}


def _summary(
    asked: Sequence[str], wanted: frozenset[str], values: Values | None, subjects: Sequence[str | None], seed: int
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    """The figures that were asked for, and their intervals."""
    if values is None:
        return {}, {}
    means, bounds = figures(wanted, values), intervals(wanted, values, subjects, seed)
    return {name: means[name] for name in asked}, {name: bounds[name] for name in asked if name in bounds}


def _text_record(plan: Plan, text: str | Path | None) -> dict[str, Any] | None:
    if not plan.windows:
        return None
    source = "shipped" if text is None else str(text) if isinstance(text, Path) else "given"
    return {
        "source": source,
        "sha256": origins.text_sha256(planning.read(text)),
        "windows": len(plan.windows),
        "window": max(len(given) + len(scored) for given, scored in plan.windows),
        "scored_tokens": sum(len(scored) for _, scored in plan.windows),
    }


def _records(
    cases: Sequence[Case],
    plan: Plan,
    values: Values,
    before: Values | None,
    said: Mapping[Ids, str],
    said_before: Mapping[Ids, str],
) -> list[dict[str, Any]]:
    def answers(prompt: Ids) -> dict[str, str | None]:
        return {"before": said_before.get(prompt), "after": said.get(prompt)}

    return [
        {
            "id": case.edit.id,
            "prompt": case.edit.text,
            "subject": case.edit.subject,
            "target": case.edit.target,
            "old": case.edit.old,
            "metrics": values.cases[n],
            "before": None if before is None else before.cases[n],
            "answers": answers(asked.edit.prompt),
            "missed": [question.text for question in values.missed[n]],
            "changed": [{"prompt": question.text, **answers(question.prompt)} for question in values.changed[n]],
        }
        for n, (case, asked) in enumerate(zip(cases, plan.cases, strict=True))
    ]
