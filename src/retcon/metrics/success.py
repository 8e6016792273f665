"""Does the model give this answer, and does it prefer it to another? One prompt at a time, from its token scores."""

import math
from collections.abc import Sequence

__all__ = ["mean_logprob", "prefers", "strict"]


def strict(hits: Sequence[bool]) -> float | None:
    """1.0 if every token of the answer is the argmax given the prompt and the tokens before it, else 0.0.

    The same event as "greedy decoding begins with the answer". One wrong token is a miss. None without tokens.

    >>> strict([True, True]), strict([True, False])
    (1.0, 0.0)
    """
    return float(all(hits)) if hits else None


def mean_logprob(logprobs: Sequence[float]) -> float | None:
    """The mean natural log probability a token, so that answers of different lengths compare; None without tokens.

    >>> mean_logprob([-1.0, -3.0])
    -2.0
    """
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def prefers(answer: Sequence[float], others: Sequence[Sequence[float]]) -> float | None:
    """1.0 if the answer is likelier a token than each of the others, else 0.0; a tie is a miss.

    Args:
        answer: log probabilities of the answer's tokens.
        others: the same of each answer to compare with; none of them gives None, for there is nothing to prefer it to.

    >>> prefers([-0.5], [[-1.0, -0.2], [-2.0]])
    1.0
    >>> prefers([-0.5], []) is None
    True
    """
    own, rest = mean_logprob(answer), [mean_logprob(other) for other in others]
    if own is None or not rest or None in rest:
        return None
    return float(all(own > other for other in rest if other is not None))
