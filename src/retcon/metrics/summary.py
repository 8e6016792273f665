"""What do many cases say together? Averages that skip what could not be asked, and the one score."""

from collections.abc import Iterable, Mapping

__all__ = ["SCORES", "harmonic_mean", "mean", "parts", "score"]

SCORES = {
    "score": ("efficacy", "generalization", "specificity"),
    "score_gen": ("efficacy_gen", "generalization_gen", "specificity_gen"),
}
"""Figures that are harmonic means, and of which."""


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None if none is, never 0.

    >>> mean([1.0, None, 0.0])
    0.5
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """n / (1/v1 + ... + 1/vn) for values >= 0: 0 if one is 0, None if one is missing.

    >>> harmonic_mean([1.0, 0.5, 0.5])
    0.6
    """
    known = list(values)
    if not known or None in known:
        return None
    if any(value == 0 for value in known):
        return 0.0
    return len(known) / sum(1 / value for value in known if value is not None)


def parts(name: str, figures: Mapping[str, float | None]) -> list[str]:
    """What a score is made of. A free-running one leaves out what no case has, as paraphrases in some sets; efficacy
    and one other figure there must be.

    >>> parts("score_gen", {"efficacy_gen": 0.9, "generalization_gen": None, "specificity_gen": 0.8})
    ['efficacy_gen', 'specificity_gen']
    """
    first, *rest = SCORES[name]
    there = [part for part in rest if figures.get(part) is not None]
    return [first, *(there if name == "score_gen" and there else rest)]


def score(name: str, figures: Mapping[str, float | None]) -> float | None:
    """The harmonic mean of the figures that a score of `SCORES` is made of; None where one of them is missing.

    >>> score("score_gen", {"efficacy_gen": 1.0, "generalization_gen": 0.5, "specificity_gen": 0.5})
    0.6
    """
    return harmonic_mean(figures.get(part) for part in parts(name, figures))
