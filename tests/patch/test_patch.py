"""The patch as an object: what it says of itself, what it refuses, what a sum remembers."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from retcon.errors import PatchError, RetconWarning
from retcon.patch import Dense, LowRank, Patch, Step, describe_base

Make = Callable[..., Patch]
PATH = "model.layers.0.mlp.down_proj"


def test_it_says_what_it_is(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama, 1, rank=3)
    assert patch.summary == "1 edit by memit on tiny, 3 modules, rank 3"
    assert repr(patch) == f"<Patch {patch.id}: {patch.summary}, {patch.size_bytes / 1000:.3g} kB>"
    assert len(patch.edits) == 1
    assert patch.edits[0]["target_new"] == "chess"
    assert patch.method == "memit"
    assert patch.size_bytes == 4 * 3 * ((64 + 112) * 2 + (64 + 64))
    child = make(llama, 2, parent=patch.id)
    assert repr(child).endswith(f", on top of {patch.id}>")


def test_an_empty_patch_changes_nothing(llama: PreTrainedModel) -> None:
    empty = Patch({PATH: LowRank(torch.zeros(64, 0), torch.zeros(112, 0))}, describe_base(llama, [PATH]))
    assert empty.entries == {}
    assert empty.edits == ()
    assert empty.size_bytes == 0
    with empty.on(llama):
        pass
    assert empty.merge(llama) == {}
    empty.unmerge(llama)
    assert "0 edits by hand on an unnamed model" in repr(empty)


def test_the_id_follows_the_content(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama, 1)
    assert len(patch.id) == 16
    assert patch.id == make(llama, 1).id
    changed = {path: entry.scaled(1.0 + 1e-6) for path, entry in patch.entries.items()}
    assert Patch(changed, patch.base, patch.history).id != patch.id
    assert Patch(patch.entries, patch.base, (Step(method="rome"),)).id != patch.id
    assert Patch(patch.entries, patch.base, patch.history, info={"seconds": 2}).id == patch.id


def test_factors_are_held_in_fp32_on_the_cpu(llama: PreTrainedModel) -> None:
    entry = LowRank(torch.ones(64, 1, dtype=torch.float64), torch.ones(112, 1, dtype=torch.bfloat16))
    kept = Patch({PATH: entry}, describe_base(llama, [PATH])).entries[PATH].tensors()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_a_change_that_is_not_finite_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(PatchError, match="NaN or infinity"):
        Patch({PATH: Dense(torch.full((64, 112), torch.nan))}, describe_base(llama, [PATH]))


def test_a_change_of_another_shape_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(PatchError, match=r"shape \(112, 64\), but the weight is \(64, 112\)"):
        Patch({PATH: Dense(torch.zeros(112, 64))}, describe_base(llama, [PATH]))


def test_compress_finds_the_true_rank_and_keeps_the_lineage(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama, 1, rank=2)
    assert patch.compress() is patch
    double = patch + patch.scale(2.0)
    small = double.compress()
    child = make(llama, 2, parent=double.id)
    assert {entry.rank for entry in small.entries.values()} == {2}
    for path, entry in double.entries.items():
        torch.testing.assert_close(small.entries[path].delta(), entry.delta())
    assert (small + child).parent is None


def test_a_sum_joins_what_both_remember(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1, state={"sum.x": torch.ones(2), "cat.y": torch.ones(3, 1), "a": torch.ones(1)})
    b = make(llama, 2, state={"sum.x": torch.ones(2), "cat.y": torch.zeros(3, 2), "b": torch.ones(1)})
    both = (a + b).state
    assert both["sum.x"].tolist() == [2, 2]
    assert both["cat.y"].tolist() == [[1, 0, 0]] * 3
    assert {"a", "b"} < both.keys()


def test_a_sum_that_cannot_remember_says_so(llama: PreTrainedModel, make: Make) -> None:
    a, b = (make(llama, seed, state={"keys": torch.ones(2)}) for seed in (1, 2))
    with pytest.warns(RetconWarning, match="both patches remember 'keys'"):
        assert (a + b).state == {}


def test_a_sum_joins_diagnostics(llama: PreTrainedModel, make: Make) -> None:
    a = make(llama, 1, info={"seconds": {"solve": 1.0}, "facts": [1], "note": "a"})
    b = make(llama, 2, info={"seconds": {"solve": 2.0, "targets": 1.0}, "facts": [2], "note": "b"})
    assert (a + b).info == {"seconds": {"solve": 3.0, "targets": 1.0}, "facts": [1, 2], "note": "b"}


def test_a_patch_adds_to_patches_only(llama: PreTrainedModel, make: Make) -> None:
    with pytest.raises(TypeError):
        make(llama) + 1  # type: ignore[operator]
