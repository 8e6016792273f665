"""The fast search finds what the plain one finds: on every family, at every site, whatever the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.testing import FAMILIES, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.reference import search_one
from retcon.values import SearchConfig, Site

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_found_are_those_of_the_plain_search(tiny_lm: Tiny, family: str, site: Site, agree: Agree) -> None:
    lm, edits = tiny_lm(family), tiny_edits(3)
    config = replace(CONFIG, site=site)
    found = values.search(lm, edits, config, TEMPLATES)
    plain = [search_one(lm, edit, config, TEMPLATES) for edit in edits]
    agree(found.base, torch.stack([one.base for one in plain]), 1e-5)
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-3)
    agree(found.target, torch.stack([one.base + one.delta for one in plain]), 1e-3)
    agree(found.loss[:, None], torch.tensor([one.losses[-2:-1] for one in plain]), 1e-4)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon"])
def test_shifts_agree_to_the_last_digits_in_fp64(tiny_lm: Tiny, family: str, site: Site, agree: Agree) -> None:
    """On families whose norms are computed in the model's own dtype; RMS norms are fp32 in transformers."""
    lm, edits = tiny_lm(family, torch.float64), tiny_edits(4)
    config = replace(CONFIG, site=site, steps=20)
    found = values.search(lm, edits, config, TEMPLATES)
    plain = [search_one(lm, edit, config, TEMPLATES) for edit in edits]
    assert found.delta.dtype == found.loss.dtype == torch.float64
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-8)


@pytest.mark.parametrize("kind", ["bos", "slow", "sentencepiece"])
def test_any_tokenizer_will_do(kind: str, agree: Agree) -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind)), tiny_edits(4)
    found = values.search(lm, edits, CONFIG, TEMPLATES)
    agree(found.delta, torch.stack([search_one(lm, edit, CONFIG, TEMPLATES).delta for edit in edits]), 1e-3)


@pytest.mark.parametrize("site", SITES)
def test_options_of_the_loss_count(tiny_lm: Tiny, site: Site, agree: Agree) -> None:
    """Each weight changes what is found, and both searches by the same."""
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    usual = replace(CONFIG, site=site)
    before = values.search(lm, edits, usual, TEMPLATES)
    for config in (replace(usual, kl=4.0), replace(usual, weight_decay=20.0), replace(usual, lr=0.1)):
        found = values.search(lm, edits, config, TEMPLATES)
        agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)
        assert ((found.delta - before.delta).norm(dim=-1) > 1e-2 * before.delta.norm(dim=-1)).all()
    fewer = values.search(lm, edits, usual, TEMPLATES[:2])
    assert ((fewer.delta - before.delta).norm(dim=-1) > 1e-2 * before.delta.norm(dim=-1)).all()


def test_without_the_essence_there_is_no_row_for_it(tiny_lm: Tiny, agree: Agree) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = replace(CONFIG, kl=0.0)
    found = values.search(lm, edits, config, TEMPLATES)
    agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)


def test_a_patch_that_is_on_is_part_of_the_model(tiny_lm: Tiny, agree: Agree) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(2)
    before = values.search(lm, edits, CONFIG, TEMPLATES)
    with lm.projection(0).register_forward_hook(lambda _m, _a, y: y + 0.2 * y.roll(1, -1)):
        found = values.search(lm, edits, CONFIG, TEMPLATES)
        wanted = [search_one(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.delta, torch.stack([one.delta for one in wanted]), 1e-3)
    assert ((found.base - before.base).norm(dim=1) > 1e-2 * before.base.norm(dim=1)).all()
