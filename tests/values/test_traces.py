"""A search leaves a model as it found it, also after an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import values
from retcon.lm import LM
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.values import SearchConfig, Site, Step

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


@pytest.mark.parametrize("fast", [True, False, None])
@pytest.mark.parametrize("family", ["llama", "gptj", "opt"])
def test_a_search_leaves_no_trace(tiny_lm: Tiny, traces: Traces, family: str, fast: bool | None) -> None:
    lm = tiny_lm(family)
    before = traces(lm.model)
    for site in SITES:
        values.search(lm, tiny_edits(2), replace(CONFIG, site=site, steps=3), TEMPLATES, fast=fast)
    assert traces(lm.model) == before


def test_flags_of_the_user_come_back(traces: Traces) -> None:
    lm = LM.wrap(tiny_model("gpt2"), tiny_tokenizer("fast"))
    lm.model.train()
    lm.block(1).eval()
    lm.projection(2).requires_grad_(False)
    before = traces(lm.model)
    wet = values.search(lm, tiny_edits(2), CONFIG, TEMPLATES)
    assert traces(lm.model) == before
    lm.model.eval()
    assert torch.equal(wet.delta, values.search(lm, tiny_edits(2), CONFIG, TEMPLATES).delta)  # dropout was off


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_an_error_half_way_leaves_no_trace(tiny_lm: Tiny, traces: Traces, site: Site, fast: bool) -> None:
    lm = tiny_lm("llama")
    before = traces(lm.model)
    config = replace(CONFIG, site=site)

    class Stopped(Exception):  # noqa: N818 - control flow
        pass

    def penalty(step: Step) -> Tensor:
        if step.number == 2:
            raise Stopped
        return step.delta.flatten(1).sum(1)

    with pytest.raises(Stopped):
        values.search(lm, tiny_edits(2), config, TEMPLATES, penalty=penalty, fast=fast)
    assert traces(lm.model) == before

    def break_off(*_: Any) -> None:
        raise Stopped

    for layer in (1, 2, 3):  # in the clean pass, in what stands before the site, in the search
        with lm.block(layer).register_forward_pre_hook(break_off):
            among = traces(lm.model)
            with pytest.raises(Stopped):
                values.search(lm, tiny_edits(2), config, TEMPLATES, fast=fast)
            assert traces(lm.model) == among
    assert traces(lm.model) == before


def test_a_search_inside_no_grad_works(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    wanted = values.search(lm, edits, CONFIG, TEMPLATES)
    with torch.no_grad():
        assert torch.equal(values.search(lm, edits, CONFIG, TEMPLATES).delta, wanted.delta)
