"""From a model's answers to figures: a value a case, then the average over cases with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retcon import tokens
from retcon.evaluate.answers import Answers, Ids, Pair
from retcon.evaluate.plan import FLUENCY_TOKENS, CaseQuestions, Plan, Question, pairs
from retcon.forward import Scored
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.metrics.fluency import fluency
from retcon.metrics.intervals import interval, resample_means
from retcon.metrics.perplexity import log_perplexity, perplexity
from retcon.metrics.success import mean_logprob, prefers, strict
from retcon.metrics.summary import harmonic_mean, mean

__all__ = ["Values", "figures", "intervals", "measure"]

Value = float | None

_TEXT_BATCH = 1024  # tokens: each has a row of logits, unlike those of prompts
_WHOLE = ("score", "perplexity", "log_perplexity")  # figures that are not averages of values a case
_PARTS = ("efficacy", "generalization", "specificity")


@dataclass(frozen=True, slots=True)
class Values:
    """What one model, edited or not, came to."""

    cases: list[dict[str, Value]]
    """A value for each figure that each case has; None where the case lacks the content."""
    windows: list[list[float]] = field(default_factory=list)
    """Log probabilities of the tokens of the text for perplexity."""
    missed: list[list[Question]] = field(default_factory=list)
    """For each case, the paraphrases that do not give the new answer."""
    changed: list[list[Question]] = field(default_factory=list)
    """For each case, the neighbour prompts that are no longer answered as by the unedited model."""


def measure(lm: LM, plan: Plan, answers: Answers, first: Mapping[Ids, Ids] | None) -> Values:
    """Ask all of the plan's questions of the model as it is now.

    Args:
        lm: the model that `answers` asks, for its tokenizer.
        plan: what to ask.
        answers: asks it.
        first: the unedited model's first greedy tokens at neighbour prompts; None says that this is the unedited model.
    """
    scores = answers.score(pairs(plan, first or {}))
    windows = answers.score(plan.windows, batch_tokens=_TEXT_BATCH)
    openings = [case.opening for case in plan.cases if case.opening is not None]
    texts = answers.greedy(openings, FLUENCY_TOKENS, stop_at_eos=False)
    flow = {opening: fluency(tokens.decode(lm, list(ids))) for opening, ids in texts.items()}
    judged = [_judge(plan.wanted, case, scores, first, flow) for case in plan.cases]
    return Values(
        cases=[values for values, _, _ in judged],
        windows=[windows[pair].logprobs for pair in plan.windows],
        missed=[missed for _, missed, _ in judged],
        changed=[changed for _, _, changed in judged],
    )


def _judge(
    wanted: frozenset[str],
    case: CaseQuestions,
    scores: Mapping[Pair, Scored],
    first: Mapping[Ids, Ids] | None,
    flow: Mapping[Ids, float],
) -> tuple[dict[str, Value], list[Question], list[Question]]:
    """A case's values, its paraphrases without the new answer, its neighbours with another answer than before."""

    def gives_new(question: Question) -> Value:
        return strict(scores[question.prompt, question.new].hits)

    def prefers_new(question: Question) -> Value:
        if not question.true:
            return None
        new = scores[question.prompt, question.new].logprobs
        return prefers(new, [scores[question.prompt, true].logprobs for true in question.true])

    def prefers_true(question: Question) -> Value:
        if not question.true:
            return None
        best = max((scores[question.prompt, true].logprobs for true in question.true), key=_sortable)
        return prefers(best, [scores[question.prompt, question.new].logprobs])

    def as_before(question: Question) -> Value:
        if first is None:
            return 1.0
        return strict(scores[question.prompt, first[question.prompt]].hits)

    asked: dict[str, tuple[Callable[[Question], Value], Sequence[Question]]] = {
        "efficacy": (gives_new, (case.edit,)),
        "efficacy_prob": (prefers_new, (case.edit,)),
        "efficacy_prefixed": (gives_new, case.prefixed),
        "generalization": (gives_new, case.paraphrases),
        "generalization_prob": (prefers_new, case.paraphrases),
        "specificity": (as_before, case.neighbours),
        "specificity_prob": (prefers_true, case.neighbours),
    }
    each = {
        name: [(question, ask(question)) for question in questions]
        for name, (ask, questions) in asked.items()
        if name in wanted
    }
    values = {name: mean(value for _, value in rows) for name, rows in each.items()}
    if "fluency" in wanted:
        values["fluency"] = None if case.opening is None else flow[case.opening]
    missed = [question for question, value in each.get("generalization", []) if value == 0]
    changed = [question for question, value in each.get("specificity", []) if value == 0]
    return values, missed, changed


def _sortable(logprobs: Sequence[float]) -> float:
    value = mean_logprob(logprobs)
    return -np.inf if value is None or np.isnan(value) else value


def figures(wanted: frozenset[str], values: Values) -> dict[str, Value]:
    """Each wanted figure: the mean over the cases that have it; None where no case has."""
    found = {name: mean(case.get(name) for case in values.cases) for name in wanted.difference(_WHOLE)}
    if "score" in wanted:
        found["score"] = harmonic_mean(found[name] for name in _PARTS)
    nats = log_perplexity(values.windows)
    if "log_perplexity" in wanted:
        found["log_perplexity"] = nats
    if "perplexity" in wanted:
        found["perplexity"] = perplexity(nats)
    return {name: found[name] for name in METRICS if name in found}


def intervals(
    wanted: frozenset[str], values: Values, subjects: Sequence[str | None], seed: int
) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals of the figures that can have one, drawing whole subjects (for perplexity, windows).

    Args:
        wanted: the figures.
        values: of one model.
        subjects: of the cases; a case without one stands alone.
        seed: of the bootstrap. The same cases and seed draw the same samples for both models.
    """
    clusters = [(n, "") if subject is None else (-1, subject) for n, subject in enumerate(subjects)]
    columns = {name: [case.get(name) for case in values.cases] for name in sorted(wanted.difference(_WHOLE))}
    samples = resample_means(columns, clusters, seed=seed)
    if "score" in wanted and all(name in samples for name in _PARTS):
        parts = np.stack([samples[name] for name in _PARTS])
        with np.errstate(divide="ignore"):  # 1 / (1/0) is 0, as it should be
            samples["score"] = len(_PARTS) / (1 / parts).sum(0)
    if wanted & {"perplexity", "log_perplexity"} and values.windows:
        nats = resample_means(
            {"nats": [log_perplexity([window]) for window in values.windows]},
            range(len(values.windows)),
            weights=[len(window) for window in values.windows],
            seed=seed,
        )
        for name, change in (("log_perplexity", np.asarray), ("perplexity", np.exp)):
            if name in wanted and "nats" in nats:
                with np.errstate(over="ignore"):
                    samples[name] = change(nats["nats"])
    found = {name: interval(samples[name]) for name in METRICS if name in samples}
    return {name: bounds for name, bounds in found.items() if bounds is not None}
