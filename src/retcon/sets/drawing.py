"""Draws by hashes: the same on every machine and in every version of Python, and one draw does not move another."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from retcon.storage import digest

__all__ = ["draw", "shuffled"]

T = TypeVar("T")


def draw(choices: Sequence[T], *key: Any) -> T:
    """The one of `choices` that the key (JSON types) picks.

    >>> draw(["red", "green", "blue"], 0, "sky") == draw(["red", "green", "blue"], 0, "sky")
    True
    """
    return choices[int(digest(*key)[:16], 16) % len(choices)]


def shuffled(items: Iterable[T], *key: Any) -> list[T]:
    """The items (JSON types) in an order that the key gives; it does not depend on the order in which they came."""
    return sorted(items, key=lambda item: digest(*key, item))
