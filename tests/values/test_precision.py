"""Half-precision products, half-precision models: the shifts stay near, and stay fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import values
from retcon.arch import frozen
from retcon.lm import LM
from retcon.testing import tiny_edits
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Site, loss
from retcon.values.clean import prepare
from retcon.values.loss import evaluate

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


def test_gradients_too_small_for_fp16_are_found(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is scaled; without that, next to nothing is left of a small one's gradient."""
    config = replace(CONFIG, kl=0.0)

    def gradient(dtype: torch.dtype) -> Tensor:
        lm, edits = tiny_lm("llama", dtype), tiny_edits(2)
        rows = [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, TEMPLATES, i, essence=False)]
        with frozen(lm.model):
            base, chunks = prepare(lm, rows, 2, config, 64, "whole")
            return evaluate(lm, chunks, torch.zeros_like(base), config, torch.full((2,), 1e-5)).gradient

    wanted = gradient(torch.float32)
    assert (F.cosine_similarity(gradient(torch.float16), wanted, dim=-1) > 0.99).all()
    monkeypatch.setattr(loss, "loss_scale", lambda _lm: 1.0)
    assert (F.cosine_similarity(gradient(torch.float16), wanted, dim=-1) < 0.99).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_half_precision_model_is_searched_in_fp32(
    tiny_lm: Tiny, family: str, dtype: torch.dtype, agree: Agree
) -> None:
    lm, edits = tiny_lm(family, dtype), tiny_edits(3)
    found = values.search(lm, edits, CONFIG, TEMPLATES)
    assert found.delta.dtype == found.base.dtype == found.loss.dtype == torch.float32
    plain = [PlainSearch(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.base, torch.stack([one.base for one in plain]), 3e-2)
    loss = torch.stack([one.loss_and_gradient(shift)[0] for one, shift in zip(plain, found.delta, strict=True)])
    assert (loss < found.loss + 0.2).all()
