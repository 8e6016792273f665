"""Context templates: short texts put before a prompt, so that an edit holds in more than one context."""

from collections.abc import Sequence

from retcon import forward, patch, tokens
from retcon.lm import LM

__all__ = ["SEARCH_WORDS", "written"]

SEARCH_WORDS = ("The", "Therefore", "Because", "I", "You")
"""First words of the search's templates; evaluation prefixes begin with others."""


def written(
    lm: LM,
    words: Sequence[str] = SEARCH_WORDS,
    *,
    length: int = 10,
    temperature: float = 1.0,
    top_k: int | None = 5,
    top_p: float = 1.0,
    seed: int = 0,
) -> tuple[str, ...]:
    """Templates that the model writes itself: each word, continued to `length` tokens in all, ends with ". ".

    The same model and patches, words and seed give the same templates. Braces and line breaks are taken out.
    """
    on = tuple(item.id for item in patch.active(lm.model))
    key = str(("templates", on, tuple(words), length, temperature, top_k, top_p, seed))
    if key not in lm.notes:
        starts = [tokens.encode(lm, word) for word in words]
        out: list[str] = []
        found = forward.sample(
            lm,
            starts,
            max_new_tokens=max(length - 1, 1),
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_at_eos=False,
            label="templates",
        )
        for word, ids in zip(words, found, strict=True):
            text = " ".join((word + tokens.decode(lm, ids)).replace("{", "").replace("}", "").split())
            out.append(f"{text}. ")
        lm.notes[key] = tuple(out)
    return tuple(lm.notes[key])
