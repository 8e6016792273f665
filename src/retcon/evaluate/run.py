"""Measuring a model before and after a patch, on the same questions."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retcon import forward, tokens
from retcon.caches import Store
from retcon.errors import RetconError
from retcon.evaluate import ability, breakdown
from retcon.evaluate import plan as planning
from retcon.evaluate import prefixes as prefixing
from retcon.evaluate import provenance as origins
from retcon.evaluate.answers import Answers, Ids, place
from retcon.evaluate.drift import drift
from retcon.evaluate.generating import MOST_TOKENS, said
from retcon.evaluate.measure import Unedited, Values, Written, figures, intervals, measure, text_scores
from retcon.evaluate.plan import Plan
from retcon.evaluate.record import Report
from retcon.evaluate.sampling import sampled
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.metrics.match import gen_start
from retcon.patch import Patch, steady
from retcon.requests import Case

__all__ = ["evaluate"]

ANSWER_TOKENS = 12
"""Length of the answers that a report shows."""

SHOWN = 100
"""For how many edit prompts, and how many changed neighbours, a report shows answers: failures of its headline figure
first, then those of strict efficacy."""


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
    prefix_tokens: Sequence[int] = (),
    tasks: Sequence[str] = (),
    task_files: Path | None = None,
    harness: bool = False,
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
        prefix_tokens: lengths in tokens, such as (0, 5, 50, 100, 200): `details["prefix_tokens"]` tells strict efficacy
            behind three passages of each, cut from `text` behind what perplexity is taken on where it is long enough.
        tasks: of general ability: those of `retcon.evaluate.ability.TASKS`, and with the extra lm-eval any of
            lm-evaluation-harness; each gives a figure `ability_TASK`.
        task_files: a folder with tasks of your own for the harness, as YAML.
        harness: whether to score our own tasks through the harness too.
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
    able = ability.Asking(tasks, files=task_files, harness=harness)
    asked = [name for name in METRICS if name in named]
    chosen = _sampled(cases, sample, seed)
    unedited = Answers(lm, Store(place(lm)) if cache else None)
    written = _prefixes(lm, unedited, prefixes, seed) if "efficacy_prefixed" in wanted else []
    running = planning.read(text)[: planning.TEXT_LETTERS] if prefix_tokens else ""
    passages = prefixing.passages(lm, running, prefix_tokens, seed, past=planning.TEXT_TOKENS)
    plan = planning.make(lm, chosen, wanted, written, text, passages)

    base = _unedited(lm, unedited, plan, patch)
    before = measure(lm, plan, unedited, base, edited=False) if compare and patch is not None else None
    able_before = able.of(lm, unedited) if compare or patch is None else {}
    shown: dict[Ids, str] = {}
    if patch is None:
        asker, values, able_after = unedited, measure(lm, plan, unedited, base, edited=False), able_before
    else:
        asker = Answers(lm)
        with patch.on(lm.model), steady(lm.model):
            values = measure(lm, plan, asker, base)
            able_after = able.of(lm, asker)
            shown = _said(lm, asker, _to_show(plan, values))
    shown_before = _said(lm, unedited, _to_show(plan, values)) if compare or patch is None else {}

    subjects = [case.edit.subject for case in chosen]
    earlier = values if patch is None else before
    after_figures, after_intervals = _summary(asked, wanted, values, subjects, seed)
    figures_before, intervals_before = _summary(asked, wanted, earlier, subjects, seed)
    details = {
        "prefix_tokens": breakdown.by_length(values, earlier, passages, subjects, seed),
        "facts_of_the_subject": breakdown.by_facts_of_the_subject(chosen, cases, _asked(asked, values), seed),
        "steps": breakdown.by_step(chosen, _asked(asked, values), patch, seed),
        "portability": breakdown.by_kind(values, earlier, subjects, seed),
        "specificity_gen": _known(plan, base),
        "ability": ability.details(able_after, able_before if patch is not None else {}, seed),
    }
    return Report(
        n=len(chosen),
        metrics=after_figures | ability.figures(able_after),
        before=figures_before | ability.figures(able_before),
        seconds=round(time.perf_counter() - started, 3),
        intervals=after_intervals | ability.intervals(able_after, seed),
        before_intervals=intervals_before | ability.intervals(able_before, seed),
        warnings=[
            *_otherwise(lm, patch),
            *_warnings(after_figures, after_intervals, values),
            *(_warnings(figures_before, intervals_before, before, "before the edit, ") if before is not None else ()),
        ],
        details={name: found for name, found in details.items() if found},
        provenance={
            "model": origins.model(lm),
            "patch": origins.of_patch(patch),
            "seed": seed,
            "cases": {"scored": len(chosen), "given": len(cases), "sampled": sample is not None},
            "prefixes": {"written_by": "the unedited model" if prefixes is None else "the user", "texts": written},
            "text": _text_record(plan, text),
            "running_text": _running_record(running, passages),
            "generation": _generation(plan),
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
            "code": origins.code(),
            "hardware": origins.hardware(),
            **(provenance or {}),
        },
        cases=_records(chosen, plan, values, before, shown, shown_before),
    )


def _otherwise(lm: LM, patch: Patch | None) -> list[str]:
    """A warning where the patch was made for prompts that reach the model in another form."""
    if patch is None:
        return []
    told = origins.asked_otherwise(lm, patch, "give --chat (chat=True)", "leave --chat (chat=True) out")
    return [told] if told else []


def _sampled(cases: Sequence[Case], size: int | None, seed: int) -> list[Case]:
    if not cases:
        raise RetconError("there are no cases to judge by; give at least one")
    return sampled(cases, size, seed)


def _prefixes(lm: LM, unedited: Answers, prefixes: Sequence[str] | None, seed: int) -> list[str]:
    return prefixing.written(lm, unedited, seed) if prefixes is None else prefixing.checked(prefixes)


def _unedited(lm: LM, unedited: Answers, plan: Plan, patch: Patch | None) -> Unedited:
    """What the unedited model says at neighbour prompts, as far as a wanted figure needs it."""
    near = list(dict.fromkeys(question.prompt for case in plan.cases for question in case.neighbours))
    openings = planning.neighbour_openings(plan)
    texts = unedited.free(openings) if openings else {}
    written = {prompt: said(lm, ids) for prompt, ids in texts.items()}
    if patch is None:
        return Unedited(said=written)
    text = text_scores(plan, unedited) if "log_perplexity_change" in plan.wanted else []
    first = _first_tokens(lm, unedited, near) if "specificity" in plan.wanted else {}
    moved = drift(lm, patch, near) if "neighbourhood_kl" in plan.wanted else []
    return Unedited(first, written, dict(zip(near, moved, strict=False)), text)


def _known(plan: Plan, base: Unedited) -> dict[str, int]:
    """Of how many neighbour prompts `specificity_gen` tells: those that the unedited model answers right."""
    near = [question for case in plan.cases for question in case.neighbours if question.accepted]
    right = sum(bool(gen_start(base.said.get(question.prompt, ""), question.accepted)) for question in near)
    return {"neighbours": len(near), "answered_right_before": right} if near else {}


def _generation(plan: Plan) -> dict[str, Any] | None:
    """How the model was let to write freely."""
    if not any(name.endswith("_gen") for name in plan.wanted):
        return None
    stop = "end token, line break after something written, twice the longest accepted answer and 8 tokens"
    return {"decoding": "greedy", "stop": stop, "most_tokens": MOST_TOKENS}


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
    names = [name for name in ("efficacy_gen", "efficacy") if name in plan.wanted]
    if names:

        def held(n: int) -> list[float]:
            """By the figure that the headline takes where the case has it, then by the strict one."""
            known = [value for name in names if (value := values.cases[n][name]) is not None]
            return [known[0], known[-1]] if known else [0.0, 0.0]

        edits = [plan.cases[n].edit.prompt for n in sorted(range(len(plan.cases)), key=held)[:SHOWN]]
    return edits + [question.prompt for questions in values.changed for question in questions][:SHOWN]


def _said(lm: LM, answers: Answers, prompts: Sequence[Ids]) -> dict[Ids, str]:
    said = answers.greedy(prompts, ANSWER_TOKENS, stop_at_eos=True)
    return {prompt: " ".join(tokens.decode(lm, list(ids)).split()) for prompt, ids in said.items()}


def _asked(asked: Sequence[str], values: Values) -> list[dict[str, float | None]]:
    """The values of each case, in the order of `METRICS`."""
    return [{name: row[name] for name in asked if name in row} for row in values.cases]


def _summary(
    asked: Sequence[str], wanted: frozenset[str], values: Values | None, subjects: Sequence[str | None], seed: int
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    """The figures that were asked for, and their intervals."""
    if values is None:
        return {}, {}
    means, bounds = figures(wanted, values), intervals(wanted, values, subjects, seed)
    return {name: means[name] for name in asked}, {name: bounds[name] for name in asked if name in bounds}


def _warnings(
    means: Mapping[str, float | None], bounds: Mapping[str, tuple[float, float]], values: Values, when: str = ""
) -> list[str]:
    """A sentence for each figure that is no finite number, or whose interval would leave such out."""
    told = []
    for name, value in means.items():
        if value is None:
            continue
        each = [one for case in values.cases if (one := case.get(name)) is not None]
        ruined = sum(not math.isfinite(one) for one in each)
        if not math.isfinite(value):
            what = "infinite" if math.isinf(value) else "not a number"
            cause = f", for {ruined} of {len(each)} cases are no finite numbers" if ruined else ""
            told.append(f"{when}{name} is {what}{cause}; it has no interval")
        elif name == "perplexity" and name not in bounds and len(values.windows) > 1:
            told.append(f"{when}{name} has no interval: in some samples of the bootstrap it is infinite")
    return told


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


def _running_record(running: str, passages: Mapping[int, Sequence[str]]) -> dict[str, Any] | None:
    """From what the passages were cut."""
    if not passages:
        return None
    return {"sha256": origins.text_sha256(running), "lengths": list(passages), "passages": prefixing.PASSAGES}


def _records(
    cases: Sequence[Case],
    plan: Plan,
    values: Values,
    before: Values | None,
    shown: Mapping[Ids, str],
    shown_before: Mapping[Ids, str],
) -> list[dict[str, Any]]:
    def answers(prompt: Ids) -> dict[str, str | None]:
        return {"before": shown_before.get(prompt), "after": shown.get(prompt)}

    def probed(after: Written, earlier: Written | None) -> dict[str, Any]:
        question = after.question
        texts = {"before": None if earlier is None else earlier.text, "after": after.text}
        named = {"prompt": question.text, "kind": question.kind, "answers": list(question.accepted)}
        return {**named, "right": after.right, "written": texts}

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
            "written": {"before": None if before is None else before.said[n], "after": values.said[n]},
            "portability": [
                probed(one, None if before is None else before.portability[n][place])
                for place, one in enumerate(values.portability[n])
            ],
        }
        for n, (case, asked) in enumerate(zip(cases, plan.cases, strict=True))
    ]
