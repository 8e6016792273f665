"""How firmly does the model hold a text? Figures of one item from its teacher-forced token scores.

What a token score is made of (log probability, whether the token is the argmax, its rank) comes from the caller, and so
does whether the end token is among the tokens: it is for `probability` and what is made of it, it is not for
`exact_memorisation` and `extraction_strength`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from retcon.metrics.success import mean_logprob
from retcon.metrics.summary import mean

__all__ = [
    "exact_memorisation",
    "extraction_strength",
    "hit_at",
    "mean_reciprocal_rank",
    "probability",
    "probability_with_options",
    "truth_ratio",
    "truth_ratio_forget",
    "truth_ratio_retain",
]


def probability(logprobs: Sequence[float]) -> float | None:
    """exp(mean natural log probability of the tokens), so that answers of any length compare; None without tokens.

    >>> round(probability([-1.0, -3.0]), 4)
    0.1353
    """
    value = mean_logprob(logprobs)
    return None if value is None else math.exp(value)


def probability_with_options(answer: Sequence[float], others: Sequence[Sequence[float]]) -> float | None:
    """p(answer) / (p(answer) + sum of p(other)), each the `probability` of its tokens; None without other answers.

    >>> probability_with_options([-1.0], [[-1.0], [-1.0, -1.0], [-1.0]])
    0.25
    """
    own, rest = mean_logprob(answer), [mean_logprob(other) for other in others]
    if own is None or not rest or None in rest:
        return None
    # relative to the answer, so that improbable answers do not underflow
    total = math.fsum(_exp(value - own) for value in rest if value is not None)
    return 1 / (1 + total)


def truth_ratio(
    correct: Sequence[float],
    wrong: Sequence[Sequence[float]],
    *,
    mean: Literal["geometric", "arithmetic"] = "geometric",
) -> float | None:
    """R: how probable wrong answers are beside the correct one. 1 where the model cannot tell them apart.

    With m = -mean log probability of a text's tokens: R = exp(-mean_j m(wrong_j)) / exp(-m(correct)), the geometric
    mean over the wrong answers; `mean="arithmetic"` takes mean_j exp(-m(wrong_j)) above the line. Maini et al., "TOFU:
    A Task of Fictitious Unlearning for LLMs" (arXiv 2401.06121).

    Args:
        correct: log probabilities of the paraphrased correct answer's tokens, or of the answer's where it has none.
        wrong: the same of each wrong answer in the same wording.
        mean: over the wrong answers.

    Returns:
        R >= 0; None without wrong answers or where a text has no token.
    """
    own, rest = mean_logprob(correct), [mean_logprob(other) for other in wrong]
    if own is None or not rest or None in rest:
        return None
    gaps = [value - own for value in rest if value is not None]
    if mean == "geometric":
        return _exp(math.fsum(gaps) / len(gaps))
    return math.fsum(_exp(gap) for gap in gaps) / len(gaps)


def truth_ratio_forget(ratios: Iterable[float | None]) -> float | None:
    """Mean of min(R, 1/R) over what is to be forgotten: 1 where no answer stands out; None without ratios.

    >>> truth_ratio_forget([0.5, 2.0, 0.0])
    0.3333333333333333
    """
    return mean(None if R is None else 0.0 if R == 0 else min(R, 1 / R) for R in ratios)


def truth_ratio_retain(ratios: Iterable[float | None]) -> float | None:
    """Mean of max(0, 1 - R) over what is to be kept: 1 where wrong answers are far behind; None without ratios.

    >>> truth_ratio_retain([0.5, 2.0])
    0.25
    """
    return mean(None if R is None else max(0.0, 1 - R) for R in ratios)


def exact_memorisation(hits: Sequence[bool]) -> float | None:
    """The share of tokens that are the argmax given the true ones before them; None without tokens.

    >>> exact_memorisation([True, False, True, True])
    0.75
    """
    return sum(hits) / len(hits) if hits else None


def extraction_strength(hits: Sequence[bool]) -> float | None:
    """1 - k/n, with k the least number of true first tokens after which all n - k others are the argmax.

    k = n where the last token is missed, so that such a text has strength 0. None without tokens. Carlini et al.,
    "Extracting Training Data from Large Language Models" (arXiv 2012.07805), in the form of Wang et al. (2502.07218).

    >>> extraction_strength([False, True, True, True]), extraction_strength([True, True, True, False])
    (0.75, 0.0)
    """
    held = 0
    for hit in reversed(hits):
        if not hit:
            break
        held += 1
    return held / len(hits) if hits else None


def mean_reciprocal_rank(ranks: Sequence[float]) -> float | None:
    """Mean of 1/rank of the tokens; 1 is the likeliest, infinity one that was never offered. None without tokens.

    >>> mean_reciprocal_rank([1, 4, math.inf])
    0.4166666666666667
    """
    return math.fsum(1 / rank for rank in ranks) / len(ranks) if ranks else None


def hit_at(ranks: Sequence[float], m: int = 100) -> float | None:
    """The share of tokens among the model's `m` likeliest; None without tokens.

    >>> hit_at([1, 4, 101])
    0.6666666666666666
    """
    return sum(rank <= m for rank in ranks) / len(ranks) if ranks else None


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
