"""Answers drawn at random: what a model may say to a question when it does not take the likeliest word each time."""

from collections.abc import Sequence

from retcon import forward, tokens
from retcon.lm import LM
from retcon.storage import digest

__all__ = ["sampled"]


def sampled(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[str]]:
    """So many answers to each prompt, from the model's whole distribution; each draws from a seed of its own.

    Args:
        lm: the model, with whatever is on it.
        prompts: token ids.
        samples: answers to each.
        max_new_tokens: the longest answer.
        temperature: 1 draws from the model's own distribution.
        seed: of the draws, with the place of the prompt and the number of the answer.
    """
    rows = [list(ids) for ids in prompts for _ in range(samples)]
    places = [(i, number) for i in range(len(prompts)) for number in range(samples)]
    seeds = [int(digest(seed, "decoding", *place)[:12], 16) for place in places]
    if not rows:
        return []
    found = forward.sample(lm, rows, max_new_tokens=max_new_tokens, seed=seeds, temperature=temperature)
    texts = [tokens.decode(lm, ids) for ids in found]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]
