"""Every family's parts are found where they are, and what cannot be edited is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import arch
from retcon.errors import UnsupportedModel
from retcon.testing import FAMILIES, MOE_FAMILIES, tiny_model

# family: blocks, MLP output, attention output (in a block), width of a key, write gain, items a block returns
LLAMA = ("model.layers", "mlp.down_proj", "self_attn.o_proj", 112, 1.0, 0)
TABLE: dict[str, tuple[str, str, str, int, float | None, int]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "stablelm": LLAMA,
    "cohere": LLAMA,
    "granite": (*LLAMA[:4], 0.5, 0),
    "gemma2": (*LLAMA[:4], None, 0),
    "gemma3": (*LLAMA[:4], None, 0),
    "olmo2": (*LLAMA[:4], None, 0),
    "gpt2": ("transformer.h", "mlp.c_proj", "attn.c_proj", 112, 1.0, 0),
    "gptj": ("transformer.h", "mlp.fc_out", "attn.out_proj", 112, 1.0, 2),
    "gpt_neo": ("transformer.h", "mlp.c_proj", "attn.attention.out_proj", 112, 1.0, 2),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense", 112, 1.0, 0),
    "opt": ("model.decoder.layers", "fc2", "self_attn.out_proj", 112, 1.0, 0),
    "phi": ("model.layers", "mlp.fc2", "self_attn.dense", 112, 1.0, 0),
    "falcon": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", 112, 1.0, 2),
    "bloom": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", 256, 1.0, 2),
    "mpt": ("transformer.blocks", "ffn.down_proj", "attn.out_proj", 256, 1.0, 2),
}
WINDOWED = {"mistral", "gemma2", "gemma3", "gpt_neo"}
WITHOUT_POSITIONS = {"bloom", "mpt"}


def test_the_table_names_every_family() -> None:
    assert set(TABLE) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found(family: str) -> None:
    stack, mlp, attention, d_mlp, gain, outputs = TABLE[family]
    found = arch.find(tiny_model(family))
    assert found.blocks == tuple(f"{stack}.{i}" for i in range(4))
    assert found.mlp_out == tuple(f"{stack}.{i}.{mlp}" for i in range(4))
    assert found.attn_out == tuple(f"{stack}.{i}.{attention}" for i in range(4))
    assert found.n_layers == 4
    assert (found.family, found.head) == ("gemma3_text" if family == "gemma3" else family, "lm_head")
    assert (found.d_model, found.d_mlp, found.conv1d) == (64, d_mlp, family == "gpt2")
    assert found.write_gain == gain
    assert found.block_outputs == outputs
    assert found.positions is (family not in WITHOUT_POSITIONS)
    assert found.window == (8 if family in WINDOWED else None)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_projection_writes_to_the_residual_stream(family: str) -> None:
    """Zeroed, the two projections of a block leave its input as it is: nothing else writes."""
    model = tiny_model(family, layers=2)
    found = arch.find(model)
    for path in found.mlp_out + found.attn_out:
        module: Any = model.get_submodule(path)
        weight: Tensor = module.weight
        d_out, d_in = weight.shape[::-1] if found.conv1d else weight.shape
        assert d_out == found.d_model
        assert path in found.attn_out or d_in == found.d_mlp
        weight.zero_()
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
    states = model(torch.arange(5, 12)[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[1], states[0])  # the last one is normed, this one is not


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_experts_are_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"^model\.layers\.0\.mlp\.experts .*\({family}\)") as caught:
        arch.find(tiny_model(family))
    assert "\n" not in str(caught.value)


def test_a_list_of_experts_is_refused_by_name() -> None:
    """Older code and remote models keep experts in a ModuleList of plain layers."""
    model: Any = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.experts = nn.ModuleList([nn.Linear(64, 64) for _ in range(2)])
    with pytest.raises(UnsupportedModel, match=r"^model\.layers\.1\.mlp\.experts is a mixture of experts"):
        arch.find(model)


def test_one_layer_that_scales_otherwise_is_no_plain_gain() -> None:
    """A family whose MLP output is squashed on its way has no linear gain."""
    model: Any = tiny_model("llama", layers=2)
    for block in model.model.layers:
        block.mlp.register_forward_hook(lambda _m, _a, output: output.tanh())
    assert arch.find(model).write_gain is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2", "olmo2", "granite", "gptj"])
def test_other_dtypes_agree(family: str, dtype: torch.dtype) -> None:
    whole, other = arch.find(tiny_model(family)), arch.find(tiny_model(family, dtype=dtype))
    if whole.write_gain is None:
        assert other.write_gain is None
    else:
        assert other.write_gain == pytest.approx(whole.write_gain, abs=0.02)
    assert other.mlp_out == whole.mlp_out


@pytest.mark.parametrize("family", FAMILIES)
def test_finding_leaves_no_trace(family: str) -> None:
    model = tiny_model(family, layers=2)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = traces(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    arch.find(model)
    assert list(traces(model)) == list(before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_frozen_restores_after_an_error() -> None:
    model: Any = tiny_model("gpt2", layers=2)
    model.train()
    model.transformer.h[0].eval()
    next(model.parameters()).requires_grad_(False)
    before = traces(model)

    def interrupted() -> None:
        with arch.frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(weight.requires_grad for weight in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert traces(model) == before


def test_module_at_says_when_there_is_none() -> None:
    model: Any = tiny_model("gpt2", layers=1)
    assert arch.module_at(model, "transformer.h.0.mlp") is model.transformer.h[0].mlp
    with pytest.raises(UnsupportedModel, match=r"no module 'transformer\.h\.7'"):
        arch.module_at(model, "transformer.h.7")


def traces(model: nn.Module) -> list[object]:
    """Everything that a visitor might leave changed: modes, gradient flags, hooks, overrides."""

    def seen() -> Iterator[object]:
        for name, module in model.named_modules():
            yield name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks)
            yield "forward" in module.__dict__
        for name, weight in model.named_parameters():
            yield name, weight.requires_grad, weight.grad is None

    return list(seen())
