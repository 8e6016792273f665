"""Draws by hashes."""

from collections import Counter

from retcon.sets.drawing import draw, shuffled


def test_a_draw_follows_from_its_key_alone_and_is_even() -> None:
    assert draw("abc", 0, "x") == draw("abc", 0, "x")
    counts = Counter(draw("abc", 0, n) for n in range(900))
    assert min(counts.values()) > 240


def test_an_order_does_not_depend_on_the_order_given() -> None:
    items = [str(n) for n in range(30)]
    assert shuffled(items, 0) == shuffled(reversed(items), 0)
    assert sorted(shuffled(items, 0)) == sorted(items)
    assert shuffled(items, 0) != shuffled(items, 1)


def test_draws_are_pinned_so_that_a_set_stays_the_same() -> None:
    assert shuffled(["a", "b", "c", "d"], 0) == PINNED_ORDER
    assert [draw(["a", "b", "c"], n) for n in range(6)] == PINNED_DRAWS


PINNED_ORDER = ["a", "d", "c", "b"]
PINNED_DRAWS = ["c", "a", "c", "b", "b", "c"]
