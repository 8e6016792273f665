"""PMET writes what the MLP is to say, in shares by square roots, and leaves attention alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from retcon import hooks, tokens, values
from retcon.lm import LM
from retcon.methods import MEMIT, PMET, PMETConfig
from retcon.methods.family import search_config
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

TIGHT = PMETConfig(statistics="none", templates=0, steps=5, ridge=1e-4, layers=(2,), rounds=1)
"""So small a ridge that the keys are met."""


@cache
def lm(family: str) -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


def test_the_first_layers_take_the_most() -> None:
    """If each write arrives in full, five layers take 0.447, 0.276, 0.160, 0.083 and 0.034 of the residual."""
    left, taken = 1.0, []
    for layers in range(5, 0, -1):
        taken.append(left * PMET().share(layers))
        left -= taken[-1]
    assert taken == pytest.approx([0.447, 0.276, 0.160, 0.083, 0.034], abs=5e-4)
    assert left == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2", "granite"])
def test_the_projections_output_is_the_mlps_part_of_the_target(family: str) -> None:
    """Not the attention's, and whatever gain or norm comes after."""
    model, edits = lm(family), tiny_edits(3)
    patch = PMET(TIGHT).edit(model, edits)
    path = model.arch.mlp_out[2]
    assert set(patch.entries) == {path}
    found = values.search(model, edits, search_config(TIGHT, 2, "attn_and_mlp_out"))
    assert found.target.shape == (3, 2, model.arch.d_model)
    assert (found.delta.norm(dim=2) > 1e-3 * found.base.norm(dim=2)).all()
    with patch.on(model.model):
        for edit, wanted in zip(edits, found.target[:, 1], strict=True):
            row = tokens.locate_subject(model, edit.prompt, edit.subject or "")
            with model.inference(), hooks.record({path: model.module(path)}, "output") as seen:
                model.model(input_ids=torch.tensor([row.ids]))
            output = seen[path].view(len(row.ids), -1)[row.site]
            assert (output - wanted).norm() < 1e-2 * wanted.norm()


def test_the_window_is_narrow() -> None:
    """Shares by square roots add up, since what a lower layer writes goes past the last one's MLP."""
    deep = LM.wrap(tiny_model("llama", layers=30), tiny_tokenizer())
    assert PMET().layers(deep) == (5, 6, 7, 8, 9) == MEMIT().layers(deep)[-5:]
    assert PMET(PMETConfig(layers=(1, 2, 3, 4, 5, 6))).layers(deep) == (1, 2, 3, 4, 5, 6)


def test_the_dynamic_rule_is_an_option_of_the_search() -> None:
    assert search_config(PMETConfig(), 2, "attn_and_mlp_out").relax
    assert not search_config(PMETConfig(relax=False), 2, "attn_and_mlp_out").relax
