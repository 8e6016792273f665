"""Texts to put before a prompt: an edit must survive them. The unedited model writes them, or they are running text."""

import random
from collections.abc import Sequence

from retcon import tokens
from retcon.errors import RetconError
from retcon.evaluate.answers import Answers
from retcon.lm import LM

__all__ = ["PASSAGES", "SEED_WORDS", "checked", "joined", "passages", "written"]

SEED_WORDS = ("It", "In", "We", "There", "When", "He", "After", "Many", "She", "Today")
"""What the ten prefixes begin with: none of the words from which the target search writes its own templates."""

PASSAGES = 3
"""How many passages of each length stand before the prompts."""

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


def passages(lm: LM, text: str, lengths: Sequence[int], seed: int, *, past: int = 0) -> dict[int, list[str]]:
    """Seeded passages of each length from running text; for length 0 none, for nothing stands before the prompt then.

    Args:
        lm: the model, for its tokenizer.
        text: held out from whatever the edits were computed with.
        lengths: in tokens. A passage loses line breaks, so its length may change a little.
        seed: of where the passages begin.
        past: where the text is long enough, tokens at its beginning that are left to other measurements.

    Raises:
        RetconError: a length is negative, or longer than the text.
    """
    if not lengths:
        return {}
    if min(lengths) < 0:
        raise RetconError(f"{min(lengths)} tokens cannot stand before a prompt; give lengths from 0 on")
    ids, longest = tokens.encode(lm, text), max(lengths)
    first = past if len(ids) - longest >= past + PASSAGES else 0
    if len(ids) - longest < first + PASSAGES:
        raise RetconError(
            f"the text has {len(ids)} tokens, too few for passages of {longest}; give a longer text, or shorter lengths"
        )
    found: dict[int, list[str]] = {}
    for length in dict.fromkeys(lengths):
        starts = random.Random(length + 1_000 * seed).sample(range(first, len(ids) - length), PASSAGES)
        cut = [tokens.decode(lm, ids[start : start + length]) for start in starts] if length else []
        found[length] = [" ".join(one.replace("\ufffd", "").split()) for one in cut]
    return found
