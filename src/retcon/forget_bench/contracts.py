"""A corpus of our own: invented contracts between invented parties, in the manner of PISTOL (arXiv 2406.16810).

A graph of parties is drawn; each edge is one contract with up to twenty attributes, and each attribute one question.
Names are random letters and values are drawn from wide ranges, so that nothing can be guessed: a model trained without
an edge is an exact reference for one that is to forget it. Questions, wordings and word lists are ours.
"""

import json
import random
from functools import cache
from importlib import resources
from typing import Any

from retcon.errors import RetconError
from retcon.requests import Forget, ForgetCase

__all__ = ["ATTRIBUTES", "SPLIT", "contracts"]

SPLIT = "contracts"
"""The split that the cases say they come from."""
ATTRIBUTES = 20
"""The most questions a contract has."""
_WRONG = 5
_SHARE_OLD, _SHARE_BOTH_OLD = 0.75, 0.25
"""How often a contract has one party that others have too, and two."""


def contracts(edges: int, *, attributes: int = ATTRIBUTES, seed: int = 0) -> list[ForgetCase]:
    """The questions of some contracts, one group a contract; equal arguments give equal cases.

    The first contracts of a larger corpus are those of a smaller one. Each case has two paraphrases, the answer in
    other words and five wrong answers of its kind in those words.

    Args:
        edges: how many contracts.
        attributes: questions a contract, the first so many of twenty.
        seed: of the graph, the names and the values.

    Raises:
        RetconError: there is no contract, or an attribute count out of range.
    """
    if edges < 1:
        raise RetconError(f"{edges} contracts are no corpus; take at least 1")
    if not 1 <= attributes <= ATTRIBUTES:
        raise RetconError(f"a contract has 1 to {ATTRIBUTES} attributes, not {attributes}")
    draw = _Draw(random.Random(f"retcon-contracts-{seed}"))
    found: list[ForgetCase] = []
    for number, pair in enumerate(_edges(draw, edges), 1):
        group = f"contract-{seed}-{number:02d}"
        cases = [_case(draw, group, n, attribute, pair) for n, attribute in enumerate(_words()["attributes"], 1)]
        found += cases[:attributes]
    return found


def _edges(draw: "_Draw", edges: int) -> list[tuple[str, str]]:
    """The parties of each contract, no two of them the same pair; contracts that follow have no part in one."""
    parties: list[str] = []
    pairs: list[tuple[str, str]] = []
    for number in range(edges):
        own = draw.part(f"edge-{number}")
        chance = own.random()
        free = [(a, b) for a in parties for b in parties if a != b and not {(a, b), (b, a)} & set(pairs)]
        if free and chance < _SHARE_BOTH_OLD:
            pairs.append(own.choice(free))
            continue
        old = own.choice(parties) if parties and chance < _SHARE_OLD else draw.company(own)
        new = draw.company(own)
        parties += [name for name in (old, new) if name not in parties]
        pairs.append((old, new) if own.random() < 0.5 else (new, old))
    return pairs


def _case(draw: "_Draw", group: str, number: int, attribute: dict[str, Any], pair: tuple[str, str]) -> ForgetCase:
    """One question of a contract."""
    own = draw.part(f"{group}-{number}")
    parties, named = {"a": pair[0], "b": pair[1]}, {party.split()[0] for party in pair}
    values: list[str] = []
    while len(values) <= _WRONG:
        value = _value(attribute["kind"], own)
        if value not in values and not named & set(value.split()):  # the question names the parties
            values.append(value)
    said = [attribute["answer"].replace("{}", value).format(**parties) for value in values]
    return ForgetCase(
        Forget(attribute["question"].format(**parties), values[0], group=group, id=f"{group}-{number:02d}"),
        tuple(text.format(**parties) for text in attribute["paraphrases"]),
        said[0],
        tuple(said[1:]),
        SPLIT,
        pair,
    )


class _Draw:
    """Generators for each part of a corpus, and names of parties, none of which comes twice."""

    def __init__(self, source: random.Random) -> None:
        self._seed = source.random()
        self._taken: set[str] = set()

    def part(self, name: str) -> random.Random:
        """A generator that depends on the seed and a name alone."""
        return random.Random(f"{self._seed}-{name}")

    def company(self, own: random.Random) -> str:
        """A company whose name no party has."""
        while (name := _name(own)) in self._taken:
            continue
        self._taken.add(name)
        return f"{name} {own.choice(_words()['suffixes'])}"


def _value(kind: str, own: random.Random) -> str:
    """A value of a kind."""
    words = _words()
    match kind:
        case "date":
            return f"{own.randint(1, 28)} {own.choice(words['months'])} {own.randint(1950, 2049)}"
        case "town":
            return _name(own)
        case "code":
            letters = "".join(own.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(2))
            return f"{letters}-{own.randint(1000, 9999)}"
        case "person":
            return f"{_name(own)} {_name(own)}"
        case "company":
            return f"{_name(own)} {own.choice(words['suffixes'])}"
        case "address":
            return f"{own.randint(2, 998)} {_name(own)} {own.choice(words['ways'])}"
        case "region":
            return str(own.choice(words["regions"])).replace("{}", _name(own))
        case "goods":
            return " ".join(str(own.choice(words[name])) for name in ("colours", "materials", "things"))
        case "quantity":
            return str(own.randint(101, 9899))
        case "price":
            return f"{own.randint(11, 989)} dollars"
        case "sum":
            return f"{own.randint(1011, 98989)} dollars"
        case "days":
            return f"{own.randint(3, 98)} days"
        case "months":
            return f"{own.randint(3, 98)} months"
        case "percent":
            return f"{own.randint(11, 199) / 10} percent"
    raise AssertionError(f"no values of the kind {kind}")


def _name(own: random.Random) -> str:
    """Random letters that can be spoken."""
    words = _words()
    parts = [own.choice(words["onsets"]) + own.choice(words["vowels"]) for _ in range(own.choice((2, 2, 3)))]
    return str("".join(parts) + own.choice(words["codas"])).capitalize()


@cache
def _words() -> dict[str, Any]:
    text = resources.files("retcon.forget_bench").joinpath("contracts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
