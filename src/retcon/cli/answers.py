"""What a model says, for people to read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retcon.lm import LM

__all__ = ["answers"]


def answers(lm: "LM", prompts: Sequence[str], *, tokens: int = 20) -> list[str]:
    """The greedy continuation of each prompt on one line; patches that are on count."""
    from retcon import forward
    from retcon.tokens import decode, encode

    ids = [encode(lm, lm.render(prompt)) for prompt in prompts]
    said = forward.greedy(lm, ids, max_new_tokens=tokens)
    return [" ".join(decode(lm, list(answer)).split()) for answer in said]
