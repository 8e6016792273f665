"""What probes look at: the models, the questions whose answers they know, and what has been said when plainly asked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from retcon import forward, tokens
from retcon.arch import max_positions
from retcon.lm import LM
from retcon.metrics.forgotten import leaks
from retcon.metrics.summary import mean
from retcon.patch import Patch
from retcon.requests import Forget, ForgetCase

__all__ = ["ORIGINAL", "TWIN", "UNLEARNED", "Arm", "Finding", "Scene", "comes_out", "plainly", "question_ids", "said"]

ORIGINAL, UNLEARNED, TWIN = "original", "unlearned", "twin"
"""The names of the arms."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the models that are compared."""

    name: str
    """`original` (before forgetting), `unlearned`, or `twin`: the model that never saw what is to be forgotten."""
    patch: Patch | None = None
    """What makes it of the model in memory; None where that is the arm itself."""

    @property
    def folds(self) -> bool:
        """Whether it can be written into the weights, so that nothing can be taken off again."""
        return self.patch is None or all(entry.folds for entry in self.patch.entries.values())

    @contextmanager
    def on(self, lm: LM, *, check: bool = False) -> Iterator[None]:
        """Run the arm inside the block; `check` compares the weights with those that its patch was made for."""
        if self.patch is None:
            yield
            return
        with self.patch.on(lm.model, check=check):
            yield


@dataclass(frozen=True, slots=True)
class Scene:
    """The stage of all attacks."""

    lm: LM
    """Whose `chat` says how questions are put."""
    cases: tuple[ForgetCase, ...]
    """The questions that the original answers right; attacks know no others."""
    retain: tuple[ForgetCase, ...]
    """Questions whose answers are to stay."""
    arms: tuple[Arm, ...]
    """Original, unlearned and, where there is one, the twin."""
    plain: Mapping[str, Sequence[bool]]
    """By arm, whether each question's answer comes out when it is asked plainly."""
    max_new_tokens: int = 40
    seed: int = 0
    reveal: bool = False
    """Whether findings keep what was said."""

    @property
    def items(self) -> list[Forget]:
        """The questions with their answers."""
        return [case.forget for case in self.cases]

    @property
    def unlearned(self) -> Arm:
        """The arm with the patch."""
        return next(arm for arm in self.arms if arm.name == UNLEARNED)

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether the model has positions enough for a prompt and an answer."""
        limit = max_positions(self.lm.model)
        return limit is None or len(ids) + self.max_new_tokens <= limit


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attack, in one setting, has brought out."""

    setting: dict[str, Any]
    """In JSON types; no text of a question or an answer."""
    out: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """By arm and number of the question, the share of tries at which its answer came out."""
    note: str = ""
    """In words, beginning with "n/a" where nothing could be tried."""
    detail: dict[str, Any] = field(default_factory=dict)
    """More figures, in JSON types; no text of a question or an answer."""
    texts: Mapping[str, Mapping[int, Sequence[str]]] = field(default_factory=dict)
    """What was said, try by try; only where it may be revealed."""
    answers: bool = True
    """Whether it counts what the plain question counts, answers that come out; only then is there a recovery."""

    def share(self, arm: str) -> float | None:
        """The share of the questions of which a try brought the answer out."""
        return mean(float(value > 0) for value in self.out.get(arm, {}).values())

    def share_of_tries(self, arm: str) -> float | None:
        """The mean over questions of the share of tries that brought it out."""
        return mean(self.out.get(arm, {}).values())


def question_ids(lm: LM, question: str) -> list[int]:
    """The ids of a question as `retcon forget` puts it."""
    return tokens.encode(lm, lm.render(question))


def said(lm: LM, prompts: Sequence[Sequence[int]], max_new_tokens: int, label: str) -> list[str]:
    """The greedy continuation of each prompt, those that are equal run once."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    if not distinct:
        return []
    found = forward.greedy(lm, [list(ids) for ids in distinct], max_new_tokens=max_new_tokens, label=label)
    texts = {ids: tokens.decode(lm, answer) for ids, answer in zip(distinct, found, strict=True)}
    return [texts[tuple(ids)] for ids in prompts]


def comes_out(text: str, item: Forget) -> bool:
    """Whether the answer to a question, or an alias of it, stands in a text."""
    return leaks(text, item.answer, item.aliases)


def plainly(lm: LM, arms: Sequence[Arm], forget: Sequence[ForgetCase], n: int) -> dict[str, list[bool]]:
    """By arm, whether each question's answer comes out when it is plainly asked; that patches fit is checked here."""
    prompts, found = [question_ids(lm, case.forget.question) for case in forget], {}
    for arm in arms:
        with arm.on(lm, check=True):
            texts = said(lm, prompts, n, "asking plainly")
        found[arm.name] = [comes_out(text, case.forget) for text, case in zip(texts, forget, strict=True)]
    return found
