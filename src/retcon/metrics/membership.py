"""Can it be told from its scores that the model was trained on a text? Membership attacks, and what they say together.

A score s of a text is larger the less the text looks like a training text. The AUC is that of forget texts (class 0)
against holdout texts (class 1): 1 where every forget text still looks memorised, 0.5 where the two look alike.
"""

import math
import zlib
from collections.abc import Sequence

from retcon.metrics.success import mean_logprob

__all__ = [
    "auc",
    "gradient_score",
    "loss_score",
    "min_k",
    "min_k_plus_plus",
    "privleak",
    "reference_score",
    "rel_diff",
    "zlib_score",
]


def loss_score(logprobs: Sequence[float]) -> float | None:
    """Minus the mean natural log probability of the tokens; None without tokens. Yeom et al. (arXiv 1709.01604).

    >>> loss_score([-1.0, -3.0])
    2.0
    """
    value = mean_logprob(logprobs)
    return None if value is None else -value


def reference_score(logprobs: Sequence[float], reference: Sequence[float]) -> float | None:
    """`loss_score` under the model minus that under one that has not seen the text. Carlini et al. (arXiv 2012.07805).

    Args:
        logprobs: of each token under the model, in nats.
        reference: of each token under the other model, or their mean alone.

    >>> reference_score([-1.0], [-3.0])
    -2.0
    """
    own, other = loss_score(logprobs), loss_score(reference)
    return None if own is None or other is None else own - other


def gradient_score(norms: Sequence[float]) -> float | None:
    """The mean of the l2 norms of the loss's gradient, one a weight tensor. Wang et al. (arXiv 2402.17012).

    >>> gradient_score([1.0, 3.0])
    2.0
    """
    return math.fsum(norms) / len(norms) if norms else None


def zlib_score(logprobs: Sequence[float], text: str) -> float | None:
    """`loss_score` / number of bytes of the text when zlib has compressed it. Carlini et al. (arXiv 2012.07805)."""
    value = loss_score(logprobs)
    return None if value is None else value / len(zlib.compress(text.encode()))


def min_k(logprobs: Sequence[float], share: float = 0.4) -> float | None:
    """Minus the mean of the lowest `share` of the token log probabilities, at least one. Shi et al. (arXiv 2310.16789).

    >>> min_k([-5.0, -1.0, -3.0, -1.0, -1.0])
    4.0
    """
    return _lowest(logprobs, share)


def min_k_plus_plus(
    logprobs: Sequence[float], means: Sequence[float], variances: Sequence[float], share: float = 0.4
) -> float | None:
    """As `min_k`, of (log p - mean) / sigma. Zhang et al., "Min-K%++" (arXiv 2404.02936).

    Args:
        logprobs: of each token. Length n.
        means: of log p under the model's own distribution at each token, sum_v p(v) log p(v). Length n.
        variances: of log p there; at least 1e-6 is taken. Length n.
        share: of the tokens that is averaged.
    """
    scaled = [
        (value - mean) / math.sqrt(max(variance, 1e-6))
        for value, mean, variance in zip(logprobs, means, variances, strict=True)
    ]
    return _lowest(scaled, share)


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float | None:
    """P(s(holdout) > s(forget)) + P(equal)/2 over all pairs; None where a side is empty, NaN where a score is.

    >>> auc([1.0, 2.0], [3.0, 2.0])
    0.875
    """
    if not forget or not holdout:
        return None
    if any(math.isnan(score) for score in (*forget, *holdout)):
        return math.nan
    ranked = sorted([(score, 0) for score in forget] + [(score, 1) for score in holdout])
    above, below, at = 0.0, 0, 0  # pairs won by holdout texts; forget texts passed so far
    while at < len(ranked):
        stop = at
        while stop < len(ranked) and ranked[stop][0] == ranked[at][0]:
            stop += 1
        held = sum(side for _, side in ranked[at:stop])
        forgotten = stop - at - held
        above += held * (below + forgotten / 2)
        below += forgotten
        at = stop
    return above / (len(forget) * len(holdout))


def privleak(auc: float | None, reference: float | None) -> float | None:
    """100 ((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref), AUC_ref that of a model trained without the forget texts.

    Near 0 is right; far below, the texts still look memorised; far above, they stand out as wiped. The AUC is that of
    `min_k` at 40 %. None without a reference, or where its AUC is 1. Shi et al., "MUSE" (arXiv 2407.06460).

    >>> round(privleak(0.981, 0.5), 1)
    -96.2
    """
    if auc is None or reference is None or reference == 1:
        return None
    return 100 * (reference - auc) / (1 - reference)


def rel_diff(auc: float | None, reference: float | None) -> float | None:
    """100 (AUC - AUC_ref) / AUC_ref; None without a reference, or where its AUC is 0.

    >>> rel_diff(0.75, 0.5)
    50.0
    """
    if auc is None or not reference:
        return None
    return 100 * (auc - reference) / reference


def _lowest(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    # A share of a count is a count: 0.4 of 5 is 2, also where 0.4 * 5 is a hair less.
    kept = sorted(values)[: max(1, math.floor(share * len(values) + 1e-9))]
    return -math.fsum(kept) / len(kept)
