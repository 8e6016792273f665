"""Steps are plain data; patches add up in the order in which they were computed, and in no other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from retcon.errors import PatchError, RetconWarning
from retcon.patch import Patch, Step, active, top
from retcon.patch.history import jsonable

Make = Callable[..., Patch]


def test_a_step_is_known_by_its_content() -> None:
    step = Step(method="memit", config={"layers": (1, 2)}, seed=1)
    assert step.id == Step(method="memit", config={"layers": [1, 2]}, seed=1).id
    assert step.id != Step(method="memit", config={"layers": [1, 3]}, seed=1).id
    assert step.config == {"layers": [1, 2]}


def test_jsonable_leaves_nothing_that_json_lacks() -> None:
    value = {"a": (1, float("nan")), 2: np.float32(0.5), "t": torch.tensor([1.0]), "d": torch.float32, "p": Path("x")}
    assert jsonable(value) == {"a": [1, None], "2": 0.5, "t": [1.0], "d": "torch.float32", "p": "x"}
    assert jsonable({"b", "a"}) == ["a", "b"]


def test_a_sum_of_independent_patches_holds_both(llama: PreTrainedModel, make: Make) -> None:
    a, b = make(llama, 1), make(llama, 2)
    both = a + b
    assert both.edits == a.edits + b.edits
    assert both.history == a.history + b.history
    assert both.parent is None
    assert both.contains == (a.id, b.id)
    path = next(iter(a.entries))
    torch.testing.assert_close(both.entries[path].delta(), a.entries[path].delta() + b.entries[path].delta())


def test_a_sum_joins_patches_of_different_modules(llama: PreTrainedModel, make: Make) -> None:
    a, b = make(llama, 1, modules=slice(1)), make(llama, 2, modules=slice(1, 3))
    both = a + b
    assert list(both.entries) == [*a.entries, *b.entries]
    assert set(both.base.weights) == set(both.entries)


def test_a_child_comes_after_its_parent(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1)
    child = make(llama, 2, parent=a.id)
    assert child.parent == a.id
    assert (a + child).parent is None
    with pytest.raises(PatchError, match=f"the order is {a.id} \\+ {child.id}"):
        child + a


def test_a_child_without_its_parent_is_refused(llama: PreTrainedModel, make: Make) -> None:
    a, other = make(llama, 1), make(llama, 3)
    child = make(llama, 2, parent=a.id)
    with pytest.raises(PatchError, match=f"on top of patch {a.id}; add that one first"):
        other + child
    assert (a + other + child).edits == a.edits + other.edits + child.edits
    assert (other + a + child).edits == other.edits + a.edits + child.edits


def test_siblings_on_one_parent_add_up_and_keep_it(llama: PreTrainedModel, make: Make) -> None:
    root = make(llama, 1)
    left, right = make(llama, 2, parent=root.id), make(llama, 3, parent=root.id)
    assert (left + right).parent == root.id
    assert (root + (left + right)).edits == (root + left + right).edits


def test_a_grandchild_needs_both(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1)
    b = make(llama, 2, parent=a.id)
    c = make(llama, 3, parent=(a + b).id)
    assert (a + b + c).parent is None
    with pytest.raises(PatchError, match="add that one first"):
        a + c


def test_the_same_patch_twice_is_refused(llama: PreTrainedModel, make: Make) -> None:
    a, b = make(llama, 1), make(llama, 2)
    with pytest.raises(PatchError, match=f"patch {a.id} is already part of patch {a.id}"):
        a + a
    with pytest.raises(PatchError, match=f"patch {b.id} is already part of patch"):
        a + b + b


def test_a_fold_contains_what_it_went_on_from(llama: PreTrainedModel, make: Make) -> None:
    a, more = make(llama, 1), make(llama, 2)
    folded = a.then(more.entries, more.history[0], state={"cat.keys": torch.ones(2, 3)}, info={"n": 2})
    assert [step.parent for step in folded.history] == [None, a.id]
    assert folded.edits == a.edits + more.edits
    assert folded.parent is None
    assert a + folded is folded
    with pytest.raises(PatchError, match="is already part of"):
        folded + a
    with pytest.raises(PatchError, match="would count twice"):
        folded + a.then(make(llama, 3).entries, make(llama, 3).history[0])


def test_a_fold_from_an_empty_patch_is_a_first_step(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1)
    first = Patch({}, a.base).then(a.entries, a.history[0])
    assert first.id == a.id
    assert first.contains == ()
    assert (Patch({}, a.base) + a).id == a.id


def test_a_patch_made_by_hand_can_be_gone_on_from(llama: PreTrainedModel, make: Make) -> None:
    more = make(llama, 1)
    by_hand = Patch(make(llama, 2).entries, more.base)
    folded = by_hand.then(more.entries, more.history[0])
    assert folded.history[0].parent == by_hand.id
    assert folded.parent is None
    assert by_hand + folded is folded


def test_folding_in_one_run_or_from_the_saved_file_is_the_same(
    llama: PreTrainedModel, make: Make, tmp_path: Path
) -> None:
    parts = [make(llama, seed, rank=30) for seed in range(4)]
    straight = broken = parts[0]
    for part in parts[1:]:
        straight = straight.then(part.entries, part.history[0])
        broken = Patch.load(broken.save(tmp_path / "p")).then(part.entries, part.history[0])
    assert straight.id == broken.id
    assert max(entry.rank for entry in straight.entries.values()) <= 64


def test_what_is_computed_under_patches_has_their_sum_as_parent(llama: PreTrainedModel, make: Make) -> None:
    a, b = (make(llama, seed, state={"keys": torch.ones(2)}) for seed in (1, 2))
    assert top(llama) is None
    with a.on(llama):
        assert top(llama) == a.id
        with b.on(llama):
            assert active(llama) == (a, b)
            with pytest.warns(RetconWarning):
                both = a + b
            assert top(llama) == both.id
            with make(llama, 3, parent=top(llama)).on(llama):
                assert len(active(llama)) == 3
    assert active(llama) == ()


def test_scaling_multiplies_the_change(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1)
    half = a.scale(0.5)
    for path, entry in a.entries.items():
        assert torch.equal(half.entries[path].delta(), 0.5 * entry.delta())
    assert half.edits == a.edits
    assert half.history[0].scale == 0.5
    assert half.id != a.id
    nothing = a + a.scale(-1.0)
    assert all(entry.delta().abs().max() < 1e-6 for entry in nothing.entries.values())
    with pytest.raises(PatchError, match="finite"):
        a.scale(float("inf"))
