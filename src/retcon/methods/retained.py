"""Texts to retain as a method reads them: together with what the model says after them."""

from collections.abc import Sequence
from typing import NamedTuple

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.lm import LM

__all__ = ["Answered", "answered"]


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


def answered(lm: LM, retain: Sequence[str], answer_tokens: int) -> list[Answered]:
    """The ids of each text, rendered as a prompt is, and of the model's own greedy answer to it.

    What stays as it is at the prompt alone may still drift while the model answers: each token of the answer is read
    where an edit is written.

    Args:
        lm: the model as it is before the edit.
        retain: the texts; those without a token are left out.
        answer_tokens: the longest answer; 0 for the texts alone.

    Raises:
        RetconError: `answer_tokens` is negative.
    """
    if answer_tokens < 0:
        raise RetconError(f"answers of {answer_tokens} tokens cannot be retained; give 0 or more")
    prompts = [ids for text in retain if (ids := tokens.encode(lm, lm.render(text)))]
    if not answer_tokens or not prompts:
        return [Answered(prompt, [], ended=False) for prompt in prompts]
    said = forward.greedy(lm, prompts, max_new_tokens=answer_tokens, label="answers to retain")
    pairs = zip(prompts, said, strict=True)
    return [Answered(prompt, answer, ended=len(answer) < answer_tokens) for prompt, answer in pairs]
