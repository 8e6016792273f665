"""What is written is what was asked for: at the block's output where the gain is linear, else at the projection's."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from retcon import hooks, tokens, values
from retcon.lm import LM
from retcon.methods import MEMIT, ROME, MEMITConfig, ROMEConfig
from retcon.methods.family import search_config
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import FAMILIES, tiny_edits, tiny_model, tiny_tokenizer

LINEAR = ("llama", "gpt2", "gptj", "granite")
NORMED = ("gemma2", "gemma3", "olmo2")
TIGHT = MEMITConfig(statistics="none", templates=0, steps=5, ridge=1e-4, rounds=1)
"""So small a ridge that the keys are met; one round, so that what is written is what the first search asked for."""


def families(*fast: str) -> list[object]:
    others = [family for family in FAMILIES if family not in (*LINEAR, *NORMED)]
    return [*fast, *(pytest.param(family, marks=pytest.mark.slow) for family in others if fast == LINEAR)]


@cache
def lm(family: str) -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


def at_site(lm: LM, edits: Sequence[Edit], path: str) -> Float[Tensor, "n d"]:
    """Output of the module at a path at each edit's subject: one plain forward of the whole model an edit."""
    found = []
    for edit in edits:
        located = tokens.locate_subject(lm, edit.prompt, edit.subject or "")
        with lm.inference(), hooks.record({path: lm.module(path)}, "output") as seen:
            lm.model(input_ids=torch.tensor([located.ids]))
        found.append(seen[path].view(len(located.ids), -1)[located.site].double())
    return torch.stack(found)


def patched(lm: LM, patch: Patch, edits: Sequence[Edit], path: str) -> Float[Tensor, "n d"]:
    with patch.on(lm.model):
        return at_site(lm, edits, path)


def off_by(found: Float[Tensor, "n d"], wanted: Float[Tensor, "n d"]) -> float:
    """The greatest distance of a row from the wanted one, relative to it."""
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


@pytest.mark.parametrize("family", families(*LINEAR))
def test_the_blocks_output_moves_as_asked(family: str) -> None:
    """Over two layers, whatever multiplier stands after the MLP (granite's is a half)."""
    model, edits = lm(family), tiny_edits(3)
    config = replace(TIGHT, layers=(1, 2))
    patch = MEMIT(config).edit(model, edits)
    asked = values.search(model, edits, search_config(config, 2, "layer_out")).delta.double()
    block = model.arch.blocks[2]
    moved = patched(model, patch, edits, block) - at_site(model, edits, block)
    assert off_by(moved, asked) < 0.01
    gain = model.arch.write_gain
    assert gain == (0.5 if family == "granite" else 1.0)
    assert max(fact["left"] for fact in patch.info["facts"]) < 0.01


@pytest.mark.parametrize("family", families(*LINEAR))
def test_each_layer_takes_its_share(family: str) -> None:
    """The first of two layers writes half of what is asked for, and the gain stands between its write and its block."""
    model, edits = lm(family), tiny_edits(3)
    config = replace(TIGHT, layers=(1, 2))
    patch = MEMIT(config).edit(model, edits)
    asked = values.search(model, edits, search_config(config, 2, "layer_out")).delta.double()
    block, projection = model.arch.blocks[1], model.arch.mlp_out[1]
    moved = patched(model, patch, edits, block) - at_site(model, edits, block)
    written = patched(model, patch, edits, projection) - at_site(model, edits, projection)
    assert off_by(moved, asked / 2) < 0.01
    assert off_by(written * (model.arch.write_gain or 0), asked / 2) < 0.01


@pytest.mark.parametrize("family", NORMED)
def test_where_a_norm_follows_the_projections_output_is_as_predicted(family: str) -> None:
    """At each layer the target is sought at the projection, on top of what the layers below have written."""
    model, edits = lm(family), tiny_edits(3)
    assert model.arch.write_gain is None
    config = replace(TIGHT, layers=(1, 2))
    patch = MEMIT(config).edit(model, edits)
    first, second = (model.arch.mlp_out[layer] for layer in (1, 2))
    lower = Patch({first: patch.entries[first]}, patch.base)

    asked = values.search(model, edits, search_config(config, 1, "module_out")).target.double()
    start = at_site(model, edits, first)
    assert off_by(patched(model, patch, edits, first) - start, asked - start) < 0.05
    with lower.on(model.model):
        asked = values.search(model, edits, search_config(config, 2, "module_out")).target.double()
        start = at_site(model, edits, second)
    assert off_by(patched(model, patch, edits, second) - start, asked - start) < 0.05
    assert max(fact["left"] for fact in patch.info["facts"]) < 0.05


@pytest.mark.parametrize("family", [*families(*LINEAR), *NORMED])
def test_rome_meets_its_target_at_the_projection(family: str) -> None:
    model, edits = lm(family), tiny_edits(1)
    config = ROMEConfig(statistics="none", templates=0, steps=5, rounds=1, layers=(2,))
    patch = ROME(config).edit(model, edits)
    asked = values.search(model, edits, search_config(config, 2, "module_out")).target.double()
    path = model.arch.mlp_out[2]
    start = at_site(model, edits, path)
    assert off_by(patched(model, patch, edits, path) - start, asked - start) < 1e-3
