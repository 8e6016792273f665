"""Texts to put before a prompt, written by the unedited model: an edit must survive them."""

from collections.abc import Sequence

from retcon import tokens
from retcon.evaluate.answers import Answers
from retcon.lm import LM

__all__ = ["SEED_WORDS", "checked", "joined", "written"]

SEED_WORDS = ("It", "In", "We", "There", "When", "He", "After", "Many", "She", "Today")
"""What the ten prefixes begin with: none of the words from which the target search writes its own templates."""

_SHORTEST, _LONGEST = 4, 9  # tokens after the seed word
_TOP_K = 50


def written(lm: LM, unedited: Answers, seed: int) -> list[str]:
    """Ten short texts, of five to ten tokens, that the unedited model goes on to write from the seed words.

    A model that has nothing to say after a word leaves the word alone.
    """
    starts = [tuple(tokens.encode(lm, word)) for word in SEED_WORDS]
    drawn = unedited.sample(starts, _LONGEST, top_k=_TOP_K, seed=seed)
    lengths = range(_SHORTEST, _LONGEST + 1)
    texts = []
    for n, (start, ids) in enumerate(zip(starts, drawn, strict=True)):
        whole = tokens.decode(lm, [*start, *ids[: lengths[n % len(lengths)]]])
        # A text cut inside a character ends with the replacement mark; line breaks would end the thought.
        texts.append(" ".join(whole.replace("\ufffd", "").split()).rstrip(" .,;:-") or SEED_WORDS[n])
    return texts


def joined(prefix: str, prompt: str) -> str:
    """The prompt after the prefix, as a sentence of its own.

    >>> joined("It was a dark night", "The capital of Peru is")
    'It was a dark night. The capital of Peru is'
    """
    return f"{prefix} {prompt}" if prefix.endswith(("!", "?", ".")) else f"{prefix}. {prompt}"


def checked(prefixes: Sequence[str]) -> list[str]:
    """The user's own prefixes, without white space around them and without empty ones."""
    return [prefix.strip() for prefix in prefixes if prefix.strip()]
