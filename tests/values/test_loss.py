"""Loss and gradient at any shift are those of the plain search: on every family, at every site, along every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.testing import FAMILIES, tiny_edits
from retcon.testing.reference import PlainSearch
from retcon.values import Path, SearchConfig, Site

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]
Evaluated = Callable[..., tuple[Tensor, Tensor, Tensor]]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)
MEASURES_BY_SLOT = {"mistral", "gemma2", "gemma3", "gpt_neo", "mpt"}
"""Families whose attention knows distances by the column of a key: what rows share cannot be cut out of them."""


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_the_plain_search(
    tiny_lm: Tiny, family: str, site: Site, agree: Agree, evaluated: Evaluated
) -> None:
    """At an equal shift, along every path that the model allows; `evaluate` leaves the weight decay to its caller."""
    lm, edits = tiny_lm(family), tiny_edits(4)
    config = replace(CONFIG, site=site, weight_decay=0.0)
    best = values.fast_path(lm, config)
    assert best == ("cached" if family in MEASURES_BY_SLOT else "shared")
    paths: list[Path] = ["cached", "whole"] if best == "cached" else ["shared", "cached", "whole"]
    plain = [PlainSearch(lm, edit, config, TEMPLATES) for edit in edits]
    for path in paths:
        delta, loss, gradient = evaluated(lm, edits, config, path)
        wanted = [one.loss_and_gradient(shift) for one, shift in zip(plain, delta, strict=True)]
        agree(loss[:, None], torch.stack([value for value, _ in wanted])[:, None], 1e-4)
        agree(gradient, torch.stack([slope for _, slope in wanted]), 1e-4)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_layer_can_be_searched(
    tiny_lm: Tiny, family: str, site: Site, layer: int, agree: Agree, evaluated: Evaluated
) -> None:
    """Below the first or above the last block nothing can be entered; then whole rows run."""
    lm, edits = tiny_lm(family), tiny_edits(2)
    config = replace(CONFIG, site=site, layer=layer, weight_decay=0.0)
    ends = (site, layer) in {("layer_out", 3), ("module_out", 0), ("attn_and_mlp_out", 0)}
    path = values.fast_path(lm, config)
    assert (path == "whole") == ends
    delta, loss, gradient = evaluated(lm, edits, config, path)
    for i, edit in enumerate(edits):
        value, slope = PlainSearch(lm, edit, config, TEMPLATES).loss_and_gradient(delta[i])
        assert float(loss[i]) == pytest.approx(float(value), rel=1e-4)
        agree(gradient[i : i + 1], slope[None], 1e-4)
