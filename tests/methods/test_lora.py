"""LoRA editing: off it is the base bit for bit, and PEFT loads what it trained as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.methods import LoRA, LoRAConfig
from retcon.patch import LowRank, Patch
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.testing.snapshot import changed, snapshot

TinyLM = Callable[..., LM]
FEW = LoRAConfig(steps=6, batch=100, rank=4, alpha=8.0)


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(3, 500, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def sharp(family: str) -> LM:
    """A tiny model with a wide range of logits: behind its last norm that of others is too narrow for a loss near 0."""
    model: Any = tiny_model(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return LM.wrap(model, tiny_tokenizer())


def factors(patch: Patch) -> dict[str, LowRank]:
    found = {}
    for path, entry in patch.entries.items():
        assert isinstance(entry, LowRank)
        found[path] = entry
    return found


# peft 0.21 reads an attribute that transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_the_adapter_that_peft_loads_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    lm = LM.wrap(model, tiny_tokenizer())
    patch = LoRA(FEW).edit(lm, tiny_edits(3))
    clean = logits(model)
    with patch.on(model):
        wanted = logits(model)
    assert (wanted - clean).abs().max() > 1e-2
    export = patch.to_lora(tmp_path / "lora")
    assert export.rank == 4
    assert set(export.errors.values()) == {0.0}
    adapted = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "lora"))
    torch.testing.assert_close(logits(adapted), wanted, atol=1e-5, rtol=0)


def test_off_it_is_the_base_bit_for_bit_and_merged_it_is_the_adapter() -> None:
    model: PreTrainedModel = tiny_model("llama")
    lm = LM.wrap(model, tiny_tokenizer())
    clean = logits(model)
    patch = LoRA(FEW).edit(lm, tiny_edits(2))
    assert torch.equal(logits(model), clean)
    with patch.on(model):
        wanted = logits(model)
    assert torch.equal(logits(model), clean)
    assert not torch.equal(wanted, clean)
    patch.merge(model)
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=0)
    patch.unmerge(model)
    assert torch.equal(logits(model), clean)


def test_the_models_configuration_cache_and_checkpointing_are_as_before() -> None:
    model: Any = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    lm = LM.wrap(model, tokenizer)
    LoRA(FEW).edit(lm, tiny_edits(1))
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    for module in layers:
        module.gradient_checkpointing = True
    model.config.use_cache = True
    before = snapshot(model, tokenizer)
    LoRA(FEW).edit(lm, tiny_edits(2))
    assert not changed(before, snapshot(model, tokenizer))
    assert model.config.use_cache
    assert layers
    assert all(module.gradient_checkpointing for module in layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_one_edit_reaches_a_loss_below_a_hundredth(family: str) -> None:
    (fact,) = LoRA(LoRAConfig(steps=200, lr=2e-3)).edit(sharp(family), tiny_edits(4)[3:]).info["facts"]
    assert fact["loss"] < 0.01
    assert fact["probability"] > 0.98


def test_it_begins_without_effect_and_with_a_seeded_gaussian(tiny_lm: TinyLM) -> None:
    """A stop above every loss makes no step: what is left is the start."""
    lm, edits = tiny_lm("llama"), tiny_edits(1)
    start = factors(LoRA(replace(FEW, stop=1e3, rank=32)).edit(lm, edits))
    assert len(start) == 3 * lm.arch.n_layers
    for entry in start.values():
        assert not entry.U.any()
        assert float(entry.V.std()) * entry.V.shape[0] ** 0.5 == pytest.approx(1, abs=0.1)
    assert len({float(entry.V[0, 0]) for entry in start.values()}) == len(start)
    again, other = (factors(LoRA(replace(FEW, stop=1e3, rank=32, seed=seed)).edit(lm, edits)) for seed in (0, 1))
    for path, entry in start.items():
        assert torch.equal(entry.V, again[path].V)
        assert not torch.equal(entry.V, other[path].V)


def test_the_scale_is_folded_into_the_factors(tiny_lm: TinyLM) -> None:
    """Adam moves every entry of B by the learning rate at first, and A, whose gradient is still zero, not at all."""
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = LoRAConfig(steps=1, batch=100, rank=4, alpha=12.0, lr=1e-3)
    start = factors(LoRA(replace(config, stop=1e3)).edit(lm, edits))
    for path, entry in factors(LoRA(config).edit(lm, edits)).items():
        assert torch.equal(entry.V, start[path].V)
        assert float(entry.U.abs().median()) == pytest.approx(12 / 4 * 1e-3, rel=1e-2)


def test_equal_seeds_give_equal_bytes_and_order_does_not_matter(tiny_lm: TinyLM) -> None:
    lm, edits, config = tiny_lm("llama"), tiny_edits(4), replace(FEW, batch=2)
    one = LoRA(config).edit(lm, edits)
    assert LoRA(config).edit(lm, edits).id == one.id
    assert difference(one, LoRA(config).edit(lm, edits[::-1])) == 0
    assert not LoRA(config).order_matters
    assert LoRA(replace(config, schedule="depth")).order_matters


def test_going_on_puts_factors_beside_those_of_the_state(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    first = LoRA(FEW).edit(lm, edits[:1])
    both = LoRA(FEW).edit(lm, edits[1:], state=first)
    assert first.id in both.contains
    for path, entry in factors(both).items():
        assert entry.rank == 8
        assert torch.equal(entry.U[:, :4], factors(first)[path].U)


@pytest.mark.parametrize(
    ("family", "names"),
    [("llama", ["gate_proj", "up_proj", "down_proj"]), ("gpt2", ["c_fc", "c_proj"]), ("opt", ["fc1", "fc2"])],
)
def test_the_mlps_projections_of_every_layer_are_adapted(family: str, names: list[str], tiny_lm: TinyLM) -> None:
    lm = tiny_lm(family)
    paths = LoRA().paths(lm)
    assert [path.rpartition(".")[2] for path in paths] == names * lm.arch.n_layers
    chosen = LoRA(LoRAConfig(layers=(1, 3), sites=("mlp_out",))).paths(lm)
    assert chosen == [lm.arch.mlp_out[1], lm.arch.mlp_out[3]]


def test_a_model_without_such_projections_is_refused(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    odd = LM(lm.model, lm.tokenizer, replace(lm.arch, mlp_out=lm.arch.attn_out), "odd")
    reason = LoRA().unsupported(odd)
    assert reason is not None
    with pytest.raises(UnsupportedModel, match="reads the residual stream"):
        LoRA().edit(odd, tiny_edits(1))
    assert LoRA(replace(FEW, sites=("mlp_out",))).unsupported(odd) is None
    assert LoRA().unsupported(lm) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "at least rank 1"),
        ({"alpha": 0.0}, "other than zero"),
        ({"sites": ()}, "sites is empty"),
        ({"layers": (9,)}, "name some of 0 to 3"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], reason: str, tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match=reason):
        LoRA(replace(FEW, **options)).edit(tiny_lm("llama"), tiny_edits(1))
