"""Texts to retain as a method reads them: together with what the model says after them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from retcon import forward, stats, tokens
from retcon.errors import RequestError, RetconError
from retcon.lm import LM

__all__ = ["Answered", "answered", "retained_ids", "retained_keys"]


class Answered(NamedTuple):
    """A text and the model's own answer to it, in ids."""

    prompt: list[int]
    answer: list[int]
    ended: bool
    """Whether the answer came to an end by itself; the end token is not among its ids."""

    @property
    def ids(self) -> list[int]:
        """Both, one after the other."""
        return self.prompt + self.answer


def retained_ids(lm: LM, retain: Sequence[str], least: Literal[1, 2] = 1) -> list[list[int]]:
    """The ids of texts to retain, rendered as a prompt is.

    Args:
        lm: the model.
        retain: the texts.
        least: the fewest tokens that each is to have.

    Raises:
        RequestError: one has fewer.
    """
    found = [tokens.encode(lm, lm.render(text)) for text in retain]
    for text, ids in zip(retain, found, strict=True):
        if len(ids) < least:
            lack = "no token" if least == 1 else "fewer than two tokens"
            raise RequestError(f"the text to keep {text!r} has {lack}; write a longer one, or leave it")
    return found


def answered(lm: LM, retain: Sequence[str], answer_tokens: int, label: str = "answers to retain") -> list[Answered]:
    """The ids of each text, rendered as a prompt is, and of the model's own greedy answer to it.

    What stays as it is at the prompt alone may still drift while the model answers: each token of the answer is read
    where an edit is written.

    Args:
        lm: the model as it is before the edit.
        retain: the texts.
        answer_tokens: the longest answer; 0 for the texts alone.
        label: what a terminal shows beside the answers that are written.

    Raises:
        RequestError: a text has no token.
        RetconError: `answer_tokens` is negative.
    """
    if answer_tokens < 0:
        raise RetconError(f"answers of {answer_tokens} tokens cannot be retained; give 0 or more")
    prompts = retained_ids(lm, retain)
    if not answer_tokens or not prompts:
        return [Answered(prompt, [], ended=False) for prompt in prompts]
    said = forward.greedy(lm, prompts, max_new_tokens=answer_tokens, label=label)
    pairs = zip(prompts, said, strict=True)
    return [Answered(prompt, answer, ended=len(answer) < answer_tokens) for prompt, answer in pairs]


def retained_keys(
    lm: LM, paths: Sequence[str], retain: Sequence[str], answer_tokens: int, weight: float
) -> dict[str, Float[Tensor, "d_k n"]]:
    """Keys of texts to retain and of the model's own answers to them, at all their tokens, times the root of a weight.

    Args:
        lm: the model as it is before the edit.
        paths: module paths of the projections.
        retain: the texts.
        answer_tokens: the longest answer; 0 for the texts alone.
        weight: how much each counts in a sum of squares.

    Returns:
        By path, fp64, on the CPU; nothing where there is no text, or the weight is 0.

    Raises:
        RequestError: a text has no token.
        RetconError: a number is negative.
    """
    if weight < 0:
        raise RetconError(f"retain_weight is {weight:g}; it must be 0 or more")
    rows = [one.ids for one in answered(lm, retain, answer_tokens)] if weight else []
    return {path: keys * weight**0.5 for path, keys in stats.keys(lm, paths, rows).items()} if rows else {}
