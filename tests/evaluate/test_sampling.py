"""Seeded samples in their order."""

import random

import pytest

from retcon.errors import RetconError
from retcon.evaluate.sampling import sampled


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    items = list(range(50))
    found = sampled(items, 5, 3)
    assert found == sampled(items, 5, 3) == sorted(found)
    assert len({tuple(sampled(items, 5, seed)) for seed in range(5)}) > 1
    state = random.getstate()
    sampled(items, 5, 3)
    assert random.getstate() == state


def test_all_are_taken_where_there_are_no_more_and_none_is_refused() -> None:
    assert sampled([1, 2], None, 0) == sampled([1, 2], 9, 0) == [1, 2]
    with pytest.raises(RetconError, match="at least 1"):
        sampled([1, 2], 0, 0)
