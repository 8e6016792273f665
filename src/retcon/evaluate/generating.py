"""What a model writes after a prompt by itself: greedily, to the end of the text or the line, or until it is enough."""

from collections.abc import Sequence

from retcon import forward, tokens
from retcon.lm import LM

__all__ = ["MOST_TOKENS", "budget", "said", "written"]

MOST_TOKENS = 32
"""No answer is written longer than this."""

_SPARE = 8
"""Tokens allowed beyond twice the longest accepted answer: for an article, or numbers and dates in words."""


def budget(longest: int) -> int:
    """How many tokens may be written where the longest accepted answer has `longest`.

    Only the beginning is judged, so a short answer needs no long text.

    >>> budget(1), budget(5), budget(40)
    (10, 18, 32)
    """
    return min(MOST_TOKENS, 2 * longest + _SPARE)


def said(lm: LM, ids: Sequence[int]) -> str:
    """The text of what was written, on one line: up to the first line break after something that is no white space.

    Args:
        lm: the model, for its tokenizer.
        ids: of `written`.
    """
    return tokens.decode(lm, list(ids)).strip().partition("\n")[0].strip()


def written(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    *,
    batch_tokens: int = 1536,
    label: str = "writing answers",
) -> list[list[int]]:
    """Continue each prompt greedily: to the end token (not returned), to a line break after something written, or by
    `most` tokens.

    Args:
        lm: the model, with any patch already on.
        prompts: ids, none empty. Length n.
        most: how many tokens each may be continued by, at least 1. Length n.
        batch_tokens: tokens of one forward, padding included.
        label: what the progress is called.
    """
    return forward.greedy(
        lm, prompts, max_new_tokens=most, ended=_Line(lm).broken, batch_tokens=batch_tokens, label=label
    )


class _Line:
    """Knows when a line has ended."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm
        self._breaks: dict[int, bool] = {}

    def broken(self, row: list[int]) -> bool:
        """Whether the last token of a row breaks a line on which, or above which, something stands."""
        last = row[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in tokens.decode(self._lm, [last])
        return self._breaks[last] and "\n" in tokens.decode(self._lm, row).lstrip()
