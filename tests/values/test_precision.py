"""Half-precision products, half-precision models: the shifts stay near, and stay fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.testing import tiny_edits
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Site

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]
Evaluated = Callable[..., tuple[Tensor, Tensor, Tensor]]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_bfloat16_products_stay_near(
    tiny_lm: Tiny, family: str, site: Site, agree: Agree, evaluated: Evaluated
) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    config = replace(CONFIG, site=site, lr=0.1)
    exact = values.search(lm, edits, config, TEMPLATES)
    rough = values.search(lm, edits, replace(config, precision="bfloat16"), TEMPLATES)
    assert rough.delta.dtype == rough.loss.dtype == torch.float32
    assert not torch.equal(rough.loss, exact.loss)
    agree(rough.loss[:, None], exact.loss[:, None], 2e-2)
    agree(rough.base, exact.base, 1e-5)
    assert (F.cosine_similarity(rough.target, exact.target, dim=-1) > 0.99).all()
    _, _, wanted = evaluated(lm, edits, config, "cached")
    _, _, found = evaluated(lm, edits, replace(config, precision="bfloat16"), "cached")
    least = 0.98 if family == "opt" else 0.995  # units of a ReLU that are near zero flip
    assert (F.cosine_similarity(found, wanted, dim=-1) > least).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_half_precision_model_is_searched_in_fp32(tiny_lm: Tiny, family: str, agree: Agree) -> None:
    lm, edits = tiny_lm(family, torch.bfloat16), tiny_edits(3)
    found = values.search(lm, edits, CONFIG, TEMPLATES)
    assert found.delta.dtype == found.base.dtype == found.loss.dtype == torch.float32
    plain = [PlainSearch(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.base, torch.stack([one.base for one in plain]), 3e-2)
    loss = torch.stack([one.loss_and_gradient(shift)[0] for one, shift in zip(plain, found.delta, strict=True)])
    assert (loss < found.loss + 0.2).all()
