"""GRACE's decisions on lines and in planes, against sequences worked out by hand; no model is run."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retcon.errors import PatchError
from retcon.methods.grace.state import Memory
from retcon.patch import Codebook

A, B, C = (1,), (2,), (3,)
Steps = Sequence[tuple[float, tuple[int, ...]]]


def at(*place: float) -> Tensor:
    return torch.tensor(place)


def line(steps: Steps, **options: object) -> Memory:
    """A memory of edits on a line, named by their order."""
    memory = Memory(1, 1.0, **options)  # type: ignore[arg-type]
    for number, (place, label) in enumerate(steps):
        memory.add(at(place), label, str(number))
    return memory


def keys(memory: Memory) -> list[float]:
    return memory.keys[:, 0].tolist()


def answered(memory: Memory, query: Tensor) -> tuple[int, ...] | None:
    """The label that a query gets, None where it hits nothing."""
    near, distance = memory.nearest(query)
    return memory.labels[near] if distance <= memory.radii[near] else None


@pytest.mark.parametrize(
    ("steps", "options", "places", "radii"),
    [
        ([(0, A), (1.5, B)], {}, [0, 1.5], [0.74999, 0.75]),
        ([(0, A), (2.5, A)], {}, [0, 2.5], [1, 1]),
        ([(0, A), (0.5, A)], {}, [0], [1]),
        ([(0, A), (1.5, A), (2.4, A), (3.3, A), (4.2, A)], {}, [0], [4.2]),
        ([(0, A), (1.5, A), (2.4, A), (3.3, A), (4.2, A)], {"most": 2.0}, [0, 2.4], [1.5, 1.8]),
        ([(0, A), (1.5, A), (1.4, B)], {}, [0, 1.4, 1.5], [0.69999, 0.04999, 0.05]),
    ],
    ids=["conflict", "far", "inside", "chain", "chain with a limit", "orphan"],
)
def test_keys_and_radii_are_those_worked_out_by_hand(
    steps: Steps, options: dict[str, object], places: list[float], radii: list[float]
) -> None:
    memory = line(steps, **options)
    assert keys(memory) == pytest.approx(places)
    assert memory.radii == pytest.approx(radii, abs=2e-6)
    for place, label in steps:
        assert answered(memory, at(place)) == label


def test_a_split_that_orphans_an_earlier_edit_gives_it_a_key_with_a_copy_of_its_value() -> None:
    """Defect G10: without the check the edit at 1.5 would be answered by the new one at 1.4."""
    memory = line([(0, A), (1.5, A)])
    decision = memory.add(at(1.4), B, "2")
    assert (decision.case, decision.key, decision.copies) == ("conflict", 1, ((2, 0),))
    assert memory.owners == [0, 2, 1]
    assert memory.labels == [A, B, A]


def test_the_same_place_with_another_answer_is_overwritten() -> None:
    """Defect G9: radii of 0 and -1e-5, and the old key wins the tie."""
    memory = line([(0, A)])
    decision = memory.add(at(0), B, "again")
    assert (decision.case, decision.key, decision.fresh, decision.dropped) == ("overwrite", 0, True, ("0",))
    assert (memory.labels, memory.radii, memory.names) == ([B], [1.0], ["again"])


def test_what_else_an_overwritten_key_answered_keeps_its_answer() -> None:
    memory = line([(0, A), (0.8, A)])
    decision = memory.add(at(0), B, "again")
    assert decision.dropped == ("0",)
    assert decision.copies == ((1, 0),)
    assert answered(memory, at(0)) == B
    assert answered(memory, at(0.8)) == A


def test_an_edit_absorbed_by_a_ball_can_be_edited_again() -> None:
    """Its place is no key, and the old edit must not come back as an orphan of its own successor."""
    memory = line([(0, A), (0.5, A)])
    decision = memory.add(at(0.5), B, "again")
    assert decision.case == "conflict"
    assert decision.dropped == ("1",)
    assert (answered(memory, at(0)), answered(memory, at(0.5))) == (A, B)


def test_the_same_edit_twice_adds_nothing() -> None:
    memory = line([(0, A)])
    assert memory.add(at(0), A, "again").case == "same"
    assert (memory.radii, memory.owners) == ([1.0], [0, 0])


def test_labels_are_equal_by_their_tokens_and_not_by_their_mean() -> None:
    """Defect G1: (1, 4) and (2, 3) have one mean."""
    memory = line([(0, (1, 4)), (0.5, (2, 3))])
    assert memory.labels == [(1, 4), (2, 3)]
    assert line([(0, (1, 4)), (0.5, (1, 4))]).labels == [(1, 4)]


def test_labels_and_values_belong_to_their_keys_after_many_edits() -> None:
    """Defect G2: labels put in front, keys at the end."""
    generator = torch.Generator().manual_seed(0)
    places = 20 * torch.rand(10, 3, generator=generator)
    memory = Memory(3, 0.1)
    for number, place in enumerate(places):
        decision = memory.add(place, (number,), str(number))
        assert decision.key == number
    assert torch.equal(memory.keys, places)
    assert memory.labels == [(number,) for number in range(10)]


def test_moving_average_moves_the_key_half_way() -> None:
    memory = line([(0, A), (1.5, A)], growth="moving_average")
    assert keys(memory) == [0.75]
    assert memory.radii == [1.5]


def test_moving_away_from_an_edit_gives_it_a_key_of_its_own() -> None:
    """A ball of radius 1.9 around 0 holds -1.9; moved to 1.25 with radius 2.5 it does not."""
    memory = line([(0, A), (-1.9, A)])
    memory.growth = "moving_average"
    assert memory.add(at(2.5), A, "right").copies == ((1, 0),)
    assert keys(memory) == pytest.approx([1.25, -1.9])
    assert all(answered(memory, at(place)) == A for place in (0, -1.9, 2.5))


def test_a_widened_ball_has_room_for_rounding() -> None:
    memory = line([(0, A), (1.5, A)], noise=1e-3)
    assert memory.radii == [pytest.approx(1.5015)]


def test_the_newest_of_equally_near_keys_counts() -> None:
    memory = line([(0, A), (4, B)])
    assert memory.nearest(at(2)) == (1, 2.0)


def test_deletion_in_any_order_leaves_the_others_answered_and_ends_empty() -> None:
    """Defect G3: ids nested in lists, so that deletion fails."""
    generator = torch.Generator().manual_seed(1)
    places = 4 * torch.rand(10, 2, generator=generator)
    labels = [(number % 3,) for number in range(10)]
    memory = Memory(2, 0.5)
    for number, place in enumerate(places):
        memory.add(place, labels[number], str(number))
    left = list(range(10))
    for number in torch.randperm(10, generator=generator).tolist():
        kept = memory.delete(str(number))
        assert len(kept) == len(memory.labels) == len(memory.keys)
        left.remove(number)
        assert sorted(memory.names) == sorted(map(str, left))
        assert all(answered(memory, places[other]) == labels[other] for other in left)
    assert (memory.labels, memory.radii, memory.owners) == ([], [], [])


def test_a_deleted_edit_frees_what_its_ball_had_grown_by() -> None:
    memory = line([(0, A), (1.5, A), (2.4, A)])
    assert memory.radii == [pytest.approx(2.4)]
    memory.delete("2")
    assert memory.radii == [pytest.approx(1.5)]
    memory.delete("1")
    assert memory.radii == [1.0]


def test_deleting_what_is_not_there_names_what_is() -> None:
    with pytest.raises(PatchError, match="no edit 'x'.*its edits are 0"):
        line([(0, A)]).delete("x")


def test_a_codebook_gives_the_memory_back() -> None:
    memory = line([(0, A), (1.5, A), (1.4, B), (9, C)])
    codebook = Codebook.made(
        memory.keys.clone(), torch.zeros(4, 2), memory.radii, memory.labels, memory.queries.clone(), memory.owners,
        memory.names, radius=1.0,
    )  # fmt: skip
    again = Memory.of(codebook, most=None, growth="coverage", noise=0.0)
    assert (again.labels, again.owners, again.names) == (memory.labels, memory.owners, memory.names)
    assert again.radii == pytest.approx(memory.radii)
    assert torch.equal(again.keys, memory.keys)
    assert torch.equal(again.queries, memory.queries)


GRID = st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(0, 2))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(GRID, min_size=1, max_size=14), st.sampled_from([None, 0.6]), st.booleans())
def test_the_last_answer_at_each_place_is_the_one_given(
    steps: list[tuple[int, int, int]], most: float | None, moving: bool
) -> None:
    """Whatever comes after it: no edit is lost to a neighbour, a split, a moved key or a limit."""
    memory = Memory(2, 0.3, most, "moving_average" if moving else "coverage", 1e-6)
    last: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, (x, y, answer) in enumerate(steps):
        memory.add(at(x / 5, y / 5), (answer,), str(number))
        last[x, y] = (answer,)
        assert len(memory.keys) == len(memory.labels) == len(memory.radii)
        assert len(memory.queries) == len(memory.owners) == len(memory.names)
        for (column, row), label in last.items():
            assert answered(memory, at(column / 5, row / 5)) == label
