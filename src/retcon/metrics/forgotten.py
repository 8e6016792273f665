"""Is the answer gone, is the rest as it was, and does the refusal read well? Figures over generated texts.

Whether a text refuses is for a detector above this room to say; here its verdicts are counted. Of lists over items, all
are of one length and in one order.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from retcon.metrics.rouge import rouge1_recall
from retcon.metrics.summary import mean
from retcon.metrics.texts import mentions

__all__ = [
    "Leakage",
    "RefusalChecks",
    "combined",
    "drift",
    "forgotten",
    "generalization",
    "kept",
    "leakage",
    "leaks",
    "locality",
    "over_refusal",
    "refusal_quality",
    "refusal_rate",
    "reliability",
]


def forgotten(text: str, answer: str) -> float | None:
    """1 - ROUGE-1 recall of the answer that is to be forgotten; None where the answer has no word.

    >>> forgotten("I do not know where it stands.", "It stands in Paris")
    0.5
    """
    recall = rouge1_recall(text, answer)
    return None if recall is None else 1 - recall


def reliability(texts: Sequence[str], answers: Sequence[str]) -> float | None:
    """Mean of `forgotten` over the forget set, each question asked alone."""
    return mean(forgotten(text, answer) for text, answer in zip(texts, answers, strict=True))


def generalization(texts: Sequence[Sequence[str]], answers: Sequence[str]) -> float | None:
    """Mean over items of the mean of `forgotten` over the item's rephrased questions; items without one are left out.

    >>> generalization([["Paris", "no idea"], []], ["Paris", "Rome"])
    0.5
    """
    return mean(
        mean(forgotten(text, answer) for text in rephrased) for rephrased, answer in zip(texts, answers, strict=True)
    )


def kept(text: str, unedited: str) -> float:
    """ROUGE-1 recall of the unedited model's answer: 1 untouched. An answer without words is kept by one without words.

    >>> kept("It is in Rome", "It is in Paris"), kept("", "..."), kept("Rome", "")
    (0.75, 1.0, 0.0)
    """
    recall = rouge1_recall(text, unedited)
    if recall is None:
        return float(rouge1_recall(unedited, text) is None)
    return recall


def locality(texts: Sequence[str], unedited: Sequence[str]) -> float | None:
    """Mean of `kept` over questions whose answers should stay; 1 = untouched."""
    return mean(kept(text, before) for text, before in zip(texts, unedited, strict=True))


def drift(logprobs: Sequence[float], unedited: Sequence[float]) -> float | None:
    """Mean change, in nats, of the log probability of the tokens of one text; None where it has none.

    What is likeliest may change by a hair where two tokens are as good as each other; this tells how far a model moved.

    >>> drift([-1.0, -0.5], [-0.75, -0.75])
    0.25
    """
    return mean(abs(now - then) for now, then in zip(logprobs, unedited, strict=True))


def combined(reliability: float | None, retained: float | None) -> float | None:
    """1 - R1(F) + R1(R): reliability plus the mean ROUGE-1 recall of the true answers that are to stay."""
    return None if reliability is None or retained is None else reliability + retained


def refusal_rate(refused: Sequence[bool]) -> float | None:
    """The share of texts that refuse; None without texts.

    >>> refusal_rate([True, False])
    0.5
    """
    return mean(map(float, refused))


def over_refusal(refused: Sequence[bool], before: Sequence[bool]) -> float | None:
    """How much the refusal rate on questions to answer has risen over that of the unedited model.

    >>> over_refusal([True, True, False, False], [True, False, False, False])
    0.25
    """
    after, once = refusal_rate(refused), refusal_rate(before)
    return None if after is None or once is None else after - once


class RefusalChecks(NamedTuple):
    """What a good refusal does."""

    declines: bool
    names_topic: bool
    no_leak: bool
    nothing_invented: bool
    fluent: bool


def refusal_quality(refusals: Iterable[RefusalChecks]) -> float | None:
    """Mean over refusals of the share of the five checks that hold; None where nothing was refused.

    >>> refusal_quality([RefusalChecks(True, False, True, True, True)])
    0.8
    """
    return mean(sum(checks) / len(checks) for checks in refusals)


def leaks(texts: str | Sequence[str], answer: str, aliases: Sequence[str] = ()) -> bool:
    """Whether the answer or an alias stands anywhere in the text, or in one of several samples, in normal form.

    >>> leaks("I do not know, perhaps 1,809 dollars?", "1809."), leaks(["Rome", "In Paris."], "Paris")
    (True, True)
    """
    samples = [texts] if isinstance(texts, str) else texts
    return any(mentions(text, secret) for text in samples for secret in (answer, *aliases))


class Leakage(NamedTuple):
    """How many secrets still come out, of those that came out before."""

    share: float | None
    """None where the unedited model gave no answer right."""
    known: int
    """Items that the unedited model answered correctly."""


def leakage(leaked: Sequence[bool], known: Sequence[bool]) -> Leakage:
    """The share of the items answered correctly before whose answer or alias still appears.

    >>> leakage([True, False, True], [True, True, False])
    Leakage(share=0.5, known=2)
    """
    counted = [float(leak) for leak, knew in zip(leaked, known, strict=True) if knew]
    return Leakage(mean(counted), len(counted))
