"""A LoRA export acts as the patch in every library that reads it, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import PatchError
from retcon.patch import Base, Dense, LowRank, Patch, WeightHash
from retcon.testing import tiny_model

Make = Callable[..., Patch]
Logits = Callable[[nn.Module], Tensor]


# peft 0.21 reads an attribute that transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_and_transformers_load_it_and_agree(
    model: PreTrainedModel, make: Make, logits: Logits, tmp_path: Path
) -> None:
    patch = make(model, 1) + make(model, 2, modules=slice(2)) + make(model, 3, modules=slice(1, 3))
    clean = logits(model)
    with patch.on(model):
        wanted = logits(model)
    export = patch.to_lora(tmp_path / "lora")
    assert export.rank == 9
    assert export.max_lora_rank == 16
    assert set(export.errors.values()) == {0.0}
    assert (wanted - clean).abs().max() > 1e-2

    family = model.config.model_type
    by_peft = PeftModel.from_pretrained(tiny_model(family, layers=3), str(tmp_path / "lora"))
    torch.testing.assert_close(logits(by_peft), wanted, atol=1e-5, rtol=0)
    by_transformers = tiny_model(family, layers=3)
    by_transformers.load_adapter(str(tmp_path / "lora"))
    torch.testing.assert_close(logits(by_transformers), wanted, atol=1e-5, rtol=0)
    merged = by_peft.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=0)


def test_the_config_is_what_servers_read(model: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    patch = make(model, 1, rank=2) + make(model, 2, rank=3, modules=slice(1))
    patch.to_lora(tmp_path / "lora", base_name="me/base")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 5
    assert config["target_modules"] == list(patch.entries)
    assert config["fan_in_fan_out"] == (model.config.model_type == "gpt2")
    assert config["base_model_name_or_path"] == "me/base"
    assert "rank_pattern" not in config
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {5}
    assert {t.shape[1] for name, t in tensors.items() if "lora_B" in name} == {5}
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "`--max-lora-rank 8`" in card
    assert "base_model: me/base" in card
    assert "- Player 1 plays **chess**" in card


def test_zeros_are_dropped_before_padding(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    patch = make(llama, 1, rank=2)
    assert (patch + patch.scale(0.5)).to_lora(tmp_path / "lora").rank == 2


def dense_by_hand(entry: Dense, rank: int) -> tuple[Tensor, float]:
    left, values, right = torch.linalg.svd(entry.D.double(), full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank], float(values[rank:].norm() / values.norm())


def test_a_dense_change_needs_a_rank_and_states_its_error(model: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    patch = make(model, 1, dense=True)
    with pytest.raises(PatchError, match="give rank= to truncate it"):
        patch.to_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    export = patch.to_lora(tmp_path / "lora", rank=10)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for path, entry in patch.entries.items():
        assert isinstance(entry, Dense)
        wanted, error = dense_by_hand(entry, 10)
        key = f"base_model.model.{path}.lora_"
        found = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
        torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=1e-4)
        assert export.errors[path] == pytest.approx(error, rel=1e-6)
    assert f"{max(export.errors.values()):.2%}" in (tmp_path / "lora" / "README.md").read_text()
    full = patch.to_lora(tmp_path / "lora", rank=64)
    assert max(full.errors.values()) == 0


def test_what_no_adapter_can_express_is_refused(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="stands on patch 0123; export the sum of both"):
        make(llama, 1, parent="0123").to_lora(tmp_path / "lora")
    with pytest.raises(PatchError, match="changes nothing"):
        make(llama, 1).scale(0.0).to_lora(tmp_path / "lora")
    with pytest.raises(PatchError, match="at least rank 1"):
        make(llama, 1).to_lora(tmp_path / "lora", rank=0)
    known: dict[str, Any] = {"shape": (2, 2), "dtype": "float32"}
    base = Base("x", None, {"a": WeightHash(transposed=True, **known), "b": WeightHash(transposed=False, **known)})
    entry = LowRank(torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(PatchError, match="Linear and Conv1D"):
        Patch({"a": entry, "b": entry}, base).to_lora(tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_beyond_every_server_is_said(tmp_path: Path) -> None:
    base = Base("x", None, {"a": WeightHash(shape=(600, 600), transposed=False, dtype="float32")})
    export = Patch({"a": LowRank(torch.randn(600, 520), torch.randn(600, 520))}, base).to_lora(tmp_path / "lora")
    assert export.max_lora_rank is None
    assert "vLLM takes no LoRA of rank 520" in (tmp_path / "lora" / "README.md").read_text()


def test_an_export_never_replaces_what_is_not_its_own(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(PatchError, match="holds other files"):
        make(llama).to_lora(tmp_path)
    make(llama).to_lora(tmp_path / "lora")
    make(llama, 2).to_lora(tmp_path / "lora")
