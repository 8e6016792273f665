"""How much of a reference does a text repeat? ROUGE recall, from its definition (Lin, "ROUGE", 2004)."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

__all__ = ["rouge1_recall", "rouge_tokens", "rougel_recall", "stemmed"]

_WORD = re.compile(r"[^\W_]+")


def rouge1_recall(text: str, reference: str, *, stem: bool = True) -> float | None:
    """sum over words w of min(count of w in text, count in reference) / number of the reference's words.

    None where the reference has no word.

    >>> rouge1_recall("Paris it is, Paris", "It is in Paris")
    0.75
    """
    wanted = Counter(rouge_tokens(reference, stem=stem))
    if not wanted:
        return None
    return (wanted & Counter(rouge_tokens(text, stem=stem))).total() / wanted.total()


def rougel_recall(text: str, reference: str, *, stem: bool = True) -> float | None:
    """The length of the longest common subsequence of words / number of the reference's words; None where it has none.

    >>> rougel_recall("Paris it is, Paris", "It is in Paris"), rougel_recall("in Paris it is", "It is in Paris")
    (0.75, 0.5)
    """
    wanted = rouge_tokens(reference, stem=stem)
    return _common(wanted, rouge_tokens(text, stem=stem)) / len(wanted) if wanted else None


def rouge_tokens(text: str, *, stem: bool = True) -> list[str]:
    """Runs of letters and digits in lower case; with `stem`, those of four letters and more as their Porter stems.

    On ASCII text these are the tokens of the library rouge-score with its stemmer on, but for the few irregular words
    that its stemmer adds to Porter's rules; letters outside ASCII are kept, which that library drops.

    >>> rouge_tokens("The T-shirts' prices!"), rouge_tokens("The prices", stem=False)
    (['the', 't', 'shirt', 'price'], ['the', 'prices'])
    """
    found = _WORD.findall(text.lower())
    return [stemmed(word) for word in found] if stem else found


@lru_cache(maxsize=65_536)
def stemmed(word: str) -> str:
    """The Porter stem of a word in lower case; one of three letters or fewer as it is.

    >>> stemmed("contracts"), stemmed("was")
    ('contract', 'was')
    """
    return str(_stemmer().stemWord(word)) if len(word) > 3 else word


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for at, other in enumerate(second, 1):
            above = row[at]
            row[at] = diagonal + 1 if word == other else max(above, row[at - 1])
            diagonal = above
    return row[-1]


@cache
def _stemmer() -> Any:
    import snowballstemmer  # here, for it loads all its languages

    return snowballstemmer.stemmer("porter")
