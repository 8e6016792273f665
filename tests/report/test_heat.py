"""Where a patch's change lies."""

from pathlib import Path

import pytest
import torch
from tests.report import samples

from retcon.patch import Base, Dense, LowRank, Patch, WeightHash
from retcon.report.heat import changes, where


def test_norms_are_those_of_the_dense_change() -> None:
    patch = samples.patch()
    for change in changes(patch):
        assert change.norm == pytest.approx(float(patch.entries[change.path].delta().double().norm()), rel=1e-6)


def test_layers_and_modules_are_read_from_the_paths_in_order() -> None:
    found = changes(samples.patch())
    assert [one.layer for one in found] == [layer for layer in range(8, 15) for _ in range(2)]
    assert {one.module for one in found} == {"mlp.down_proj", "self_attn.o_proj"}
    told = where(samples.patch())
    assert told.sentence.startswith("The weights of 14 modules change in layers 8 to 14. The largest change is that of")


@pytest.mark.parametrize(
    ("path", "layer", "module"),
    [
        ("transformer.h.11.mlp.c_proj", 11, "mlp.c_proj"),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h", 3, "mlp.dense_4h_to_h"),
        ("model.layers.2.mlp.experts.5.down_proj", 2, "mlp.experts.5.down_proj"),
        ("lm_head", None, "lm_head"),
    ],
)
def test_families_name_their_layers_otherwise(path: str, layer: int | None, module: str) -> None:
    base = Base("x", None, {path: WeightHash(shape=(2, 3), transposed=False, dtype="float32")})
    (found,) = changes(Patch({path: Dense(torch.ones(2, 3))}, base))
    assert (found.layer, found.module) == (layer, module)
    assert found.norm == pytest.approx(6**0.5)


def test_a_memory_has_no_norm_and_is_named() -> None:
    told = where(samples.memory())
    (found,) = told.changes
    assert (found.norm, found.memory) == (None, "a codebook of 2 keys")
    assert told.sentence == (
        "At layer 9 (mlp.down_proj) stands a codebook of 2 keys; it looks at the prompt and changes no weight."
    )
    assert 'class="ring"' in told.picture


def test_a_memory_beside_a_change_shows_both() -> None:
    path = "model.layers.9.mlp.down_proj"
    base = samples.memory().base
    folding = Patch({path: LowRank(torch.ones(8, 1), torch.ones(12, 1))}, base)
    (found,) = changes(folding + samples.memory())
    assert found.norm == pytest.approx(96**0.5)
    assert found.memory == "a codebook of 2 keys"


def test_an_empty_patch_changes_nothing(tmp_path: Path) -> None:
    assert where(Patch({}, Base("x"))).sentence == "The patch changes nothing."
