"""Merging writes the change, unmerging takes it back bit for bit, an exported model is a plain one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from retcon.errors import PatchError, RetconWarning
from retcon.patch import Dense, Patch, active, describe_base
from retcon.testing import tiny_model, tiny_tokenizer

Make = Callable[..., Patch]
Logits = Callable[[nn.Module], Tensor]
Weights = Callable[[nn.Module], dict[str, Tensor]]


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("dense", [False, True])
def test_merged_agrees_with_on_and_unmerge_is_bit_exact(
    model: PreTrainedModel, make: Make, logits: Logits, weights: Weights, dense: bool
) -> None:
    patch, before = make(model, 1, dense=dense), weights(model)
    with patch.on(model):
        hooked = logits(model)
    lost = patch.merge(model)
    assert lost.keys() == patch.entries.keys()
    assert max(lost.values()) < 1e-5
    torch.testing.assert_close(logits(model), hooked, atol=1e-4, rtol=1e-4)
    assert not same(model, before)
    assert active(model) == (patch,)
    patch.unmerge(model)
    assert same(model, before)
    assert active(model) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_warns_and_tells_what_is_lost(dtype: torch.dtype, make: Make, weights: Weights) -> None:
    model = tiny_model("llama", layers=3, dtype=dtype)
    patch, before = make(model, 1, size=1e-3), weights(model)
    with pytest.warns(RetconWarning, match=r"loses \d+\.\d% of the change to rounding"):
        lost = patch.merge(model)
    for path, entry in patch.entries.items():
        weight: Any = model.get_submodule(path).weight
        written = weight.detach().float() - before[f"{path}.weight"].float()
        wanted = float((written - entry.delta()).norm() / entry.delta().norm())
        assert lost[path] == pytest.approx(wanted, rel=1e-4)
    assert 0.001 < max(lost.values()) < 1
    patch.unmerge(model)
    assert same(model, before)


def test_nested_merges_are_undone_in_reverse(llama: PreTrainedModel, make: Make, weights: Weights) -> None:
    a, b, before = make(llama, 1), make(llama, 2), weights(llama)
    a.merge(llama)
    middle = weights(llama)
    b.merge(llama)
    with pytest.raises(PatchError, match=f"patch {b.id} came on top of patch {a.id}; take it off first"):
        a.unmerge(llama)
    b.unmerge(llama)
    assert same(llama, middle)
    a.unmerge(llama)
    assert same(llama, before)
    with pytest.raises(PatchError, match="is not merged into this model"):
        a.unmerge(llama)


def test_merging_twice_or_while_on_is_refused(llama: PreTrainedModel, make: Make, weights: Weights) -> None:
    a, b, before = make(llama, 1), make(llama, 2), weights(llama)
    with a.on(llama), pytest.raises(PatchError, match=r"leave its `with` block or detach it before you merge"):
        b.merge(llama)
    a.merge(llama)
    with pytest.raises(PatchError, match="already on this model"):
        a.merge(llama)
    with pytest.raises(PatchError, match="already on this model"):
        a.attach(llama)
    with b.on(llama), pytest.raises(PatchError, match="take it off first"):
        a.unmerge(llama)
    a.unmerge(llama)
    assert same(llama, before)


def test_the_base_of_a_merged_model_is_that_of_its_originals(llama: PreTrainedModel, make: Make) -> None:
    a, paths = make(llama, 1), list(make(llama, 1).entries)
    clean = describe_base(llama, paths)
    a.merge(llama)
    assert describe_base(llama, paths) == clean
    a.unmerge(llama)
    assert describe_base(llama, paths) == clean


def test_tied_weights_are_refused_and_nothing_is_written(weights: Weights) -> None:
    model = tiny_model("llama", layers=2, tie=True)
    before = weights(model)
    paths = ["model.layers.0.mlp.down_proj", "lm_head"]
    base = describe_base(model, paths)
    patch = Patch({path: Dense(torch.ones(base.weights[path].shape)) for path in paths}, base)
    with pytest.raises(PatchError, match=r"lm_head\.weight is tied to model\.embed_tokens\.weight"):
        patch.merge(model)
    assert same(model, before)
    with patch.on(model):
        pass


def test_an_error_in_the_middle_puts_everything_back(
    llama: PreTrainedModel, make: Make, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, before = make(llama, 1), weights(llama)

    def fails(_: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(list(patch.entries.values())[-1]), "delta", fails)
    with pytest.raises(KeyboardInterrupt):
        patch.merge(llama)
    assert same(llama, before)
    assert active(llama) == ()


def test_an_exported_model_is_a_plain_one(
    model: PreTrainedModel, make: Make, logits: Logits, weights: Weights, tmp_path: Path
) -> None:
    patch, before, config = make(model, 1), weights(model), model.config.to_dict()
    with patch.on(model):
        hooked = logits(model)
    patch.export_model(model, tiny_tokenizer(), tmp_path / "out")
    assert same(model, before)
    assert model.config.to_dict() == config
    assert active(model) == ()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), hooked, atol=1e-4, rtol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 0
    told = json.loads((tmp_path / "out" / "retcon_patch.json").read_text())
    assert told["patch"] == patch.id
    assert told["history"][0]["edits"][0]["target_new"] == "chess"


def test_a_failed_export_leaves_model_and_disk_as_they_were(
    llama: PreTrainedModel, make: Make, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(llama)

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(llama, "save_pretrained", fails)
    with pytest.raises(OSError, match="disk full"):
        make(llama, 1).export_model(llama, None, tmp_path / "out")
    assert same(llama, before)
    assert active(llama) == ()
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_replaces_what_is_not_its_own(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(PatchError, match="holds other files"):
        make(llama, 1).export_model(llama, None, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "chapter 1"
