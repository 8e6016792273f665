"""Does generated text repeat itself? The entropy of its word n-grams."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["fluency", "ngram_entropy", "words"]

_WORD = re.compile(r"\w+|[^\w\s]")


def fluency(text: str) -> float:
    """(2/3 H2 + 4/3 H3) / 2 in bits, with H2 and H3 the entropies of the text's word bigrams and trigrams.

    100 words that never repeat give about 6.6; the same few words over and over give close to 0, as does an empty text,
    for a model that says nothing has lost its fluency. Weights after Meng et al., "Locating and Editing Factual
    Associations in GPT" (2022), who took them from Zhang et al., "Generating Informative and Diverse Conversational
    Responses" (2018).

    >>> fluency("no no no no no")
    0.0
    """
    tokens = words(text)
    return (2 / 3 * ngram_entropy(tokens, 2) + 4 / 3 * ngram_entropy(tokens, 3)) / 2


def ngram_entropy(tokens: Sequence[Hashable], n: int) -> float:
    """The entropy, in bits, of the distribution of n-grams in `tokens`; 0 where there are none.

    H = -sum over distinct n-grams g of f(g) log2 f(g), with f the relative frequency.

    >>> ngram_entropy(["a", "b", "a", "c"], 1)
    1.5
    """
    counts = Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


def words(text: str) -> list[str]:
    """Runs of letters and digits, and every other mark on its own.

    >>> words("It's 5 p.m.")
    ['It', "'", 's', '5', 'p', '.', 'm', '.']
    """
    return _WORD.findall(text)
