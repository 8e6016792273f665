"""A patch knows its base: another model is refused, the same checkpoint in another form warns."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from retcon.errors import PatchError, RetconWarning
from retcon.patch import Base, Dense, Patch, WeightHash, describe_base
from retcon.patch.source import Checkpoint
from retcon.testing import tiny_model

Make = Callable[..., Patch]
PATH = "model.layers.0.mlp.down_proj"
CONV = "transformer.h.0.mlp.c_proj"


class Packed(nn.Module):
    """A projection whose weight is quantised, as libraries for that store it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().char(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def quantised(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)
        layer.self_attn.o_proj = Packed(layer.self_attn.o_proj)
    return model


def sha(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_a_base_tells_each_weight_in_three_dtypes(model: PreTrainedModel) -> None:
    path = PATH if model.config.model_type == "llama" else CONV
    weight = model.get_submodule(path).weight
    base = describe_base(model, [path], name="tiny", revision="abc")
    told = base.weights[path]
    assert (base.model, base.revision) == ("tiny", "abc")
    assert (told.shape, told.dtype, told.transposed) == (
        (64, 112),
        "float32",
        path == CONV,
    )
    assert told.float32 == sha(weight)
    assert told.bfloat16 == sha(weight.bfloat16())
    assert told.float16 == sha(weight.half())
    assert told.source is None
    assert Base.from_dict(json.loads(json.dumps(base.to_dict()))) == base


@pytest.mark.parametrize("form", ["one file", "shards"])
def test_the_source_is_hashed_by_its_bytes_on_disk(model: PreTrainedModel, tmp_path: Path, form: str) -> None:
    path = PATH if model.config.model_type == "llama" else CONV
    model.bfloat16().save_pretrained(tmp_path, max_shard_size="100KB" if form == "shards" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").is_file() == (form == "shards")
    stored: dict[str, Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        stored |= load_file(file)
    name = next(key for key in stored if f"{path}.weight".endswith(key))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert describe_base(loaded, [path]).weights[path].source == sha(stored[name])
    assert describe_base(loaded, [path], source=tmp_path).weights[path].source == sha(stored[name])
    assert (
        describe_base(tiny_model(model.config.model_type, seed=1), [path], source=tmp_path).weights[path].source is None
    )


def test_a_checkpoint_that_is_damaged_or_leads_elsewhere_counts_as_absent(tmp_path: Path) -> None:
    weight = torch.zeros(2, 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"\xff" * 64)
    assert Checkpoint(tmp_path / "a").sha256("x", weight) is None
    (tmp_path / "b").mkdir()
    index = {"weight_map": {"x.weight": "../a/model.safetensors"}}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Checkpoint(tmp_path / "b").sha256("x", weight) is None
    assert Checkpoint(tmp_path / "none").sha256("x", weight) is None


def test_the_same_model_passes_in_silence(model: PreTrainedModel, make: Make) -> None:
    patch, again = make(model), tiny_model(model.config.model_type, layers=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with patch.on(again):
            pass


def test_another_model_is_refused_in_one_sentence(model: PreTrainedModel, make: Make) -> None:
    other = tiny_model(model.config.model_type, layers=3, seed=1)
    patch = make(model)
    for apply in (patch.attach, patch.merge, lambda m: patch.export_model(m, None, "never")):
        with pytest.raises(PatchError, match="the patch was made for tiny; .* is another weight in"):
            apply(other)
    patch.attach(other, check=False).detach()


def test_a_model_of_another_shape_or_family_is_refused(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama)
    with pytest.raises(PatchError, match="has no module"):
        patch.attach(tiny_model("gpt2", layers=3))
    narrow = tiny_model("llama", layers=3)
    narrow.model.layers[0].mlp.down_proj = nn.Linear(100, 64, bias=False)
    for check in (True, False):
        with pytest.raises(PatchError, match=r"is another weight|is \(64, 100\)"):
            patch.attach(narrow, check=check)


def test_a_changed_weight_is_noticed_however_it_was_written(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama)
    weight: Any = llama.get_submodule(PATH).weight
    with patch.on(llama):
        pass
    before = weight.detach().clone()
    changes = {
        "all": before + 1e-3,
        "one": before.index_put((torch.tensor(0), torch.tensor(0)), before[0, 0] * 1.001),
        "signs": -before,
        "rows": before.flip(0),
        "columns": before.flip(1),
    }
    for changed in changes.values():
        weight.data.copy_(changed)
        with pytest.raises(PatchError, match="is another weight"):
            patch.attach(llama)
        weight.data.copy_(before)
        with patch.on(llama):
            pass


@pytest.mark.parametrize("here", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("there", ["float32", "bfloat16"])
def test_another_dtype_of_the_same_checkpoint_warns(here: str, there: str, make: Make) -> None:
    made_on = tiny_model("llama", layers=3, dtype=getattr(torch, there))
    model = tiny_model("llama", layers=3, dtype=getattr(torch, here))
    patch = make(made_on)
    if here == there:
        patch.attach(model).detach()
        return
    if {here, there} == {"bfloat16", "float16"}:  # two roundings of weights that are on no disk: nothing tells
        with pytest.raises(PatchError, match="another weight"):
            patch.attach(model)
        return
    with pytest.warns(RetconWarning, match=f"was made on tiny in {there} and this model holds it in {here}"):
        patch.attach(model).detach()


def test_two_roundings_of_one_checkpoint_are_told_by_its_bytes(
    llama: PreTrainedModel, make: Make, tmp_path: Path
) -> None:
    llama.save_pretrained(tmp_path)
    patch = make(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16))
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    with pytest.warns(RetconWarning, match="in bfloat16 and this model holds it in float16"):
        patch.attach(half).detach()
    weight: Any = half.get_submodule(PATH).weight
    weight.data.mul_(2)
    with pytest.raises(PatchError, match="another weight"):
        patch.attach(half)


def test_a_quantised_base_warns_and_runs_but_does_not_merge(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path / "a")
    tiny_model("llama", layers=3, seed=1).save_pretrained(tmp_path / "b")
    patch = make(AutoModelForCausalLM.from_pretrained(tmp_path / "a"))
    model, ids = quantised(tmp_path / "a"), torch.tensor([[5, 6, 7]])
    clean = model(input_ids=ids).logits
    with pytest.warns(RetconWarning, match="in float32 and this model holds it in int8"), patch.on(model):
        assert not torch.equal(model(input_ids=ids).logits, clean)
    assert torch.equal(model(input_ids=ids).logits, clean)
    with pytest.raises(PatchError, match="is quantised or not in memory"):
        patch.merge(model, check=False)
    with pytest.raises(PatchError, match="another weight"):
        patch.attach(quantised(tmp_path / "b"))


def test_a_patch_made_on_a_quantised_base_fits_it_again(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    model = quantised(tmp_path)
    base = describe_base(model, [PATH])
    assert (base.weights[PATH].dtype, base.weights[PATH].float32) == ("int8", None)
    patch = Patch({PATH: Dense(torch.ones(64, 112))}, base)
    with patch.on(quantised(tmp_path)):
        pass
    with pytest.warns(RetconWarning, match="in int8 and this model holds it in float32"):
        patch.attach(AutoModelForCausalLM.from_pretrained(tmp_path)).detach()


def test_a_base_without_the_weight_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(PatchError, match="does not tell the weight of"):
        Patch({PATH: Dense(torch.ones(64, 112))}, Base("tiny")).attach(llama)


def test_patches_of_different_models_do_not_add_up(llama: PreTrainedModel, make: Make) -> None:
    a, b = make(llama, 1), make(tiny_model("llama", layers=3, seed=1), 2)
    with pytest.raises(PatchError, match="made for different models"):
        a + b
    assert (a + make(tiny_model("llama", layers=3, dtype=torch.bfloat16), 2)).base == a.base


def test_patches_of_other_names_that_share_no_weight_add_up_with_a_warning() -> None:
    known = WeightHash(shape=(2, 2), transposed=False, dtype="float32", float32="0")
    with pytest.warns(RetconWarning, match="touch no weight in common"):
        both = Base("a", None, {"x": known}).join(Base("b", None, {"y": known}))
    assert sorted(both.weights) == ["x", "y"]
    assert Base().join(both) == both == both.join(Base())
