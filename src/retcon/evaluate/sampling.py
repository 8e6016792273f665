"""Which of many items are asked: a seeded sample, in their order."""

import random
from collections.abc import Sequence
from typing import TypeVar

from retcon.errors import RetconError

__all__ = ["sampled"]

T = TypeVar("T")


def sampled(items: Sequence[T], size: int | None, seed: int) -> list[T]:
    """A seeded sample of so many items, in their order; all of them for None, or where there are no more.

    Raises:
        RetconError: the size is below 1.

    >>> sampled("abc", None, 0), len(sampled("abc", 2, 0))
    (['a', 'b', 'c'], 2)
    """
    if size is not None and size < 1:
        raise RetconError(f"a sample of {size} cases says nothing; take at least 1")
    if size is None or size >= len(items):
        return list(items)
    places = random.Random(f"retcon-sample-{seed}").sample(range(len(items)), size)
    return [items[place] for place in sorted(places)]
