"""From a model's answers to figures: a value a case, then the average over cases with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retcon import tokens
from retcon.evaluate.answers import Answers, Ids, Pair
from retcon.evaluate.generating import said
from retcon.evaluate.plan import (
    FLUENCY_TOKENS,
    OF_TEXT,
    TWO_HOP,
    CaseQuestions,
    Plan,
    Question,
    asked_freely,
    pairs,
)
from retcon.forward import Scored
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.metrics.fluency import fluency
from retcon.metrics.intervals import bounds, resample_means
from retcon.metrics.match import gen_start
from retcon.metrics.perplexity import log_perplexity, perplexity
from retcon.metrics.success import mean_logprob, prefers, strict
from retcon.metrics.summary import SCORES, mean, parts, score

__all__ = ["Unedited", "Values", "Written", "clusters", "figures", "intervals", "measure", "text_scores"]

Value = float | None

_TEXT_BATCH = 1024  # tokens: each has a row of logits, unlike those of prompts
_WHOLE = (*SCORES, *OF_TEXT)  # figures that are not averages of values a case


@dataclass(frozen=True, slots=True)
class Values:
    """What one model, edited or not, came to."""

    cases: list[dict[str, Value]]
    """A value for each figure that each case has; None where the case lacks the content."""
    windows: list[list[float]] = field(default_factory=list)
    """Log probabilities of the tokens of the text for perplexity."""
    windows_before: list[list[float]] = field(default_factory=list)
    """Those of the unedited model, where the change is wanted."""
    missed: list[list[Question]] = field(default_factory=list)
    """For each case, the paraphrases that do not give the new answer."""
    changed: list[list[Question]] = field(default_factory=list)
    """For each case, the neighbour prompts that are no longer answered as by the unedited model."""
    said: list[str | None] = field(default_factory=list)
    """For each case, what the model writes by itself at the edit prompt."""
    portability: list[list["Written"]] = field(default_factory=list)
    """For each case, what it writes at each question on what follows from the edit."""
    passages: list[dict[int, Value]] = field(default_factory=list)
    """For each case, strict efficacy behind running text of each length."""


@dataclass(frozen=True, slots=True)
class Written:
    """A question, what the model wrote after it, and whether that begins with an accepted answer."""

    question: Question
    text: str | None
    right: Value


@dataclass(frozen=True, slots=True)
class Unedited:
    """What the unedited model says at neighbour prompts, to hold the edited one against."""

    first: Mapping[Ids, Ids] = field(default_factory=dict)
    """Its first greedy tokens."""
    said: Mapping[Ids, str] = field(default_factory=dict)
    """What it writes by itself."""
    drift: Mapping[Ids, float] = field(default_factory=dict)
    """KL(unedited || edited) of the next token."""
    windows: list[list[float]] = field(default_factory=list)
    """Log probabilities of the tokens of the text for perplexity."""


def measure(lm: LM, plan: Plan, answers: Answers, unedited: Unedited, *, edited: bool = True) -> Values:
    """Ask all of the plan's questions of the model as it is now.

    Args:
        lm: the model that `answers` asks, for its tokenizer.
        plan: what to ask.
        answers: asks it.
        unedited: what the unedited model says, as far as the wanted figures need it.
        edited: whether this is the edited model; the unedited one agrees with itself.
    """
    scores = answers.score(pairs(plan, unedited.first if edited else {}))
    windows = text_scores(plan, answers)
    openings = [case.opening for case in plan.cases if case.opening is not None]
    texts = answers.greedy(openings, FLUENCY_TOKENS, stop_at_eos=False)
    flow = {opening: fluency(tokens.decode(lm, list(ids))) for opening, ids in texts.items()}
    freely = asked_freely(plan, unedited.said if edited else {})
    written = {prompt: said(lm, ids) for prompt, ids in (answers.free(freely) if freely else {}).items()}
    judge = _Judge(plan.wanted, scores, unedited, flow, written, edited)
    found = [judge.case(case) for case in plan.cases]
    return Values(
        cases=[one.values for one in found],
        windows=windows,
        windows_before=unedited.windows if edited else windows,
        missed=[one.missed for one in found],
        changed=[one.changed for one in found],
        said=[written.get(case.edit.prompt) for case in plan.cases],
        portability=[one.portability for one in found],
        passages=[one.passages for one in found],
    )


def text_scores(plan: Plan, answers: Answers) -> list[list[float]]:
    """Log probabilities of the tokens of each window of the text for perplexity."""
    scores = answers.score(plan.windows, batch_tokens=_TEXT_BATCH)
    return [scores[pair].logprobs for pair in plan.windows]


@dataclass(frozen=True, slots=True)
class _Judged:
    values: dict[str, Value]
    missed: list[Question]
    changed: list[Question]
    portability: list[Written]
    passages: dict[int, Value]


@dataclass(frozen=True, slots=True)
class _Judge:
    """Turns what a model said into values, a case at a time."""

    wanted: frozenset[str]
    scores: Mapping[Pair, Scored]
    unedited: Unedited
    flow: Mapping[Ids, float]
    written: Mapping[Ids, str]
    edited: bool

    def case(self, case: CaseQuestions) -> _Judged:
        """A case's values, and what is behind them."""
        two_hop = tuple(question for question in case.portability if question.kind in TWO_HOP)
        asked: dict[str, tuple[Callable[[Question], Value], Sequence[Question]]] = {
            "efficacy_gen": (self.begins, (case.edit,)),
            "efficacy": (self.gives_new, (case.edit,)),
            "efficacy_prob": (self.prefers_new, (case.edit,)),
            "efficacy_prefixed": (self.gives_new, case.prefixed),
            "generalization_gen": (self.begins, case.paraphrases),
            "generalization": (self.gives_new, case.paraphrases),
            "generalization_prob": (self.prefers_new, case.paraphrases),
            "portability_gen": (self.begins, case.portability),
            "two_hop_gen": (self.begins, two_hop),
            "specificity_gen": (self.still_right, case.neighbours),
            "specificity": (self.as_before, case.neighbours),
            "specificity_prob": (self.prefers_true, case.neighbours),
            "neighbourhood_kl": (self.moved, case.neighbours),
        }
        each = {
            name: [(question, ask(question)) for question in questions]
            for name, (ask, questions) in asked.items()
            if name in self.wanted
        }
        values = {name: mean(value for _, value in rows) for name, rows in each.items()}
        if "fluency" in self.wanted:
            values["fluency"] = None if case.opening is None else self.flow[case.opening]
        return _Judged(
            values,
            missed=[question for question, value in each.get("generalization", []) if value == 0],
            changed=[question for question, value in each.get("specificity", []) if value == 0],
            portability=[Written(one, self.written.get(one.prompt), self.begins(one)) for one in case.portability],
            passages={length: mean(map(self.gives_new, behind)) for length, behind in case.passages},
        )

    def begins(self, question: Question) -> Value:
        if not question.accepted or question.prompt not in self.written:
            return None
        return gen_start(self.written[question.prompt], question.accepted)

    def gives_new(self, question: Question) -> Value:
        return strict(self.scores[question.prompt, question.new].hits)

    def prefers_new(self, question: Question) -> Value:
        if not question.true:
            return None
        new = self.scores[question.prompt, question.new].logprobs
        return prefers(new, [self.scores[question.prompt, true].logprobs for true in question.true])

    def prefers_true(self, question: Question) -> Value:
        if not question.true:
            return None
        best = max((self.scores[question.prompt, true].logprobs for true in question.true), key=_sortable)
        return prefers(best, [self.scores[question.prompt, question.new].logprobs])

    def as_before(self, question: Question) -> Value:
        if not self.edited:
            return 1.0
        return strict(self.scores[question.prompt, self.unedited.first[question.prompt]].hits)

    def still_right(self, question: Question) -> Value:
        if not gen_start(self.unedited.said.get(question.prompt, ""), question.accepted):
            return None
        return self.begins(question) if self.edited else 1.0

    def moved(self, question: Question) -> Value:
        return self.unedited.drift[question.prompt] if self.edited else 0.0


def _sortable(logprobs: Sequence[float]) -> float:
    value = mean_logprob(logprobs)
    return -np.inf if value is None or np.isnan(value) else value


def figures(wanted: frozenset[str], values: Values) -> dict[str, Value]:
    """Each wanted figure: the mean over the cases that have it; None where no case has."""
    found = {name: mean(case.get(name) for case in values.cases) for name in wanted.difference(_WHOLE)}
    for name in wanted.intersection(SCORES):
        found[name] = score(name, found)
    nats = log_perplexity(values.windows)
    if "log_perplexity" in wanted:
        found["log_perplexity"] = nats
    if "perplexity" in wanted:
        found["perplexity"] = perplexity(nats)
    if "log_perplexity_change" in wanted:
        earlier = log_perplexity(values.windows_before)
        found["log_perplexity_change"] = None if nats is None or earlier is None else nats - earlier
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
    columns = {name: [case.get(name) for case in values.cases] for name in sorted(wanted.difference(_WHOLE))}
    samples = resample_means(columns, clusters(subjects), seed=seed)
    means = figures(wanted, values)
    for whole in wanted.intersection(SCORES):
        names = parts(whole, means)
        if all(name in samples for name in names):
            with np.errstate(divide="ignore"):  # 1 / (1/0) is 0, as it should be
                samples[whole] = len(names) / (1 / np.stack([samples[name] for name in names])).sum(0)
    if wanted & OF_TEXT and values.windows:
        samples |= {name: found for name, found in _of_text(values, seed).items() if name in wanted}
    return bounds({name: samples[name] for name in METRICS if name in samples})


def _of_text(values: Values, seed: int) -> dict[str, NDArray[np.float64]]:
    """Bootstrap samples of the figures of ordinary text: whole windows are drawn, the same of both models."""
    after, before = ([log_perplexity([window]) for window in part] for part in (values.windows, values.windows_before))
    nats = resample_means(
        {"after": after, **({"before": before} if before else {})},
        range(len(after)),
        weights=[len(window) for window in values.windows],
        seed=seed,
    )
    found: dict[str, NDArray[np.float64]] = {}
    if "after" in nats:
        with np.errstate(over="ignore"):
            found |= {"log_perplexity": nats["after"], "perplexity": np.exp(nats["after"])}
    if len(nats) == 2:
        with np.errstate(invalid="ignore"):  # both infinite: no change can be told
            found["log_perplexity_change"] = nats["after"] - nats["before"]
    return found


def clusters(subjects: Sequence[str | None]) -> list[tuple[int, str]]:
    """What moves together in a bootstrap: the cases of one subject; a case without one stands alone.

    >>> clusters(["Rome", None, "Rome"])
    [(-1, 'Rome'), (1, ''), (-1, 'Rome')]
    """
    return [(n, "") if subject is None else (-1, subject) for n, subject in enumerate(subjects)]
