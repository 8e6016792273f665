"""Tiny models of both storages and random patches for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.patch import Dense, Entry, LowRank, Patch, Step, describe_base
from retcon.testing import tiny_model

PATHS = {
    "llama": ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj"],
    "gpt2": ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj", "transformer.h.2.attn.c_proj"],
}

IDS = torch.arange(3, 43).view(2, 20)


def shape_at(model: nn.Module, path: str) -> tuple[int, int]:
    """(d_out, d_in) of a projection."""
    weight: Any = model.get_submodule(path).weight
    first, second = weight.shape
    return (second, first) if "c_proj" in path else (first, second)


def random_patch(
    model: PreTrainedModel,
    seed: int = 0,
    *,
    rank: int = 3,
    dense: bool = False,
    modules: slice = slice(None),
    parent: str | None = None,
    size: float = 0.05,
    **more: Any,
) -> Patch:
    """A patch with factors drawn from a seed, on three modules; one step with one edit."""
    generator = torch.Generator().manual_seed(seed)
    paths = PATHS[model.config.model_type][modules]
    entries: dict[str, Entry] = {}
    for path in paths:
        d_out, d_in = shape_at(model, path)
        if dense:
            entries[path] = Dense(size * torch.randn(d_out, d_in, generator=generator))
        else:
            U, V = torch.randn(d_out, rank, generator=generator), torch.randn(d_in, rank, generator=generator)
            entries[path] = LowRank(size * U, V)
    edit = {"prompt": "{} plays", "subject": f"Player {seed}", "target_new": "chess", "target_true": "go"}
    step = Step(method="memit", config={"layers": (1, 2)}, edits=(edit,), parent=parent, seed=seed)
    return Patch(entries, describe_base(model, paths, name="tiny"), (step,), **more)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """The logits of a fixed batch (2, 20, vocabulary)."""
    out: Tensor = model(input_ids=IDS).logits
    return out


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def hooks_of(model: nn.Module) -> int:
    """The number of hooks on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A Linear and a Conv1D model, new for each test."""
    return tiny_model(request.param, layers=3)


@pytest.fixture
def llama() -> PreTrainedModel:
    """A model of Linear projections."""
    return tiny_model("llama", layers=3)


# Tests are imported without a package, so what they share comes to them as fixtures.


@pytest.fixture(name="make")
def _make() -> Callable[..., Patch]:
    return random_patch


@pytest.fixture(name="logits")
def _logits() -> Callable[[nn.Module], Tensor]:
    return logits


@pytest.fixture(name="weights")
def _weights() -> Callable[[nn.Module], dict[str, Tensor]]:
    return weights


@pytest.fixture(name="hooks_of")
def _hooks_of() -> Callable[[nn.Module], int]:
    return hooks_of
