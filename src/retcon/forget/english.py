"""As much of English as the rewording of questions needs: frames, kinds of words, forms of verbs."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["English", "english"]


@dataclass(frozen=True, slots=True)
class English:
    """Frames of questions, words by their kind, and verbs with their forms."""

    version: int
    """Of frames and words together."""
    frames: Mapping[str, Sequence[str]]
    words: Mapping[str, frozenset[str]]
    bases: frozenset[str]
    doubled: frozenset[str]
    pasts: Mapping[str, str]
    participles: frozenset[str]

    def past(self, verb: str) -> str:
        """The past of a verb's base."""
        if verb in self.pasts:
            return self.pasts[verb]
        if verb.endswith("e"):
            return f"{verb}d"
        if verb in self.doubled:
            return f"{verb}{verb[-1]}ed"
        return re.sub(r"(?<=[^aeiou])y$", "i", verb) + "ed"

    def third(self, verb: str) -> str:
        """The third person of the present of a verb's base."""
        if verb == "have":
            return "has"
        if re.search(r"[^aeiou]y$", verb):
            return f"{verb[:-1]}ies"
        return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")

    def is_past(self, word: str) -> bool:
        """Whether a word looks like the past of a verb."""
        return word in self.pasts.values() or (word.endswith("ed") and len(word) > 4)

    def has_past(self, words: Sequence[str]) -> bool:
        """Whether one of the words is the past or the third person of a verb."""
        return any(self.is_past(word) or word in {self.third(base) for base in self.bases} for word in words)

    def is_participle(self, word: str) -> bool:
        """Whether a word is a participle: of the past, or of the present of a known verb."""
        if word in self.participles or (word.endswith("ed") and len(word) > 4 and word != "hundred"):
            return True
        stem = word.removesuffix("ing")
        return stem != word and bool({stem, f"{stem}e", stem[:-1]} & self.bases)


@cache
def english() -> English:
    """What ships with the package."""
    text = resources.files("retcon").joinpath("forget", "data", "paraphrases.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    verbs = table["verbs"]
    rows = list(_rows(verbs["irregular"]))
    doubled = frozenset(verbs["doubled"].split())
    return English(
        version=table["version"],
        frames=table["frames"],
        words={name: frozenset(words.split()) for name, words in table["words"].items()},
        bases=frozenset(verbs["regular"].split()) | doubled | {base for base, _, _ in rows},
        doubled=doubled,
        pasts={base: past for base, past, _ in rows},
        participles=frozenset(participle for _, _, participle in rows) | {"been"},
    )


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Base, past and participle of each verb."""
    for row in text.split(";"):
        base, past, *participle = row.split()
        yield base, past, participle[0] if participle else past
