"""The choice of a path: probed once, and right for models that do not take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import forward, values
from retcon.lm import LM
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.reference import search_one
from retcon.values import Path, SearchConfig, Site, paths

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


def test_a_model_that_cannot_be_entered_half_way_runs_whole(
    tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch, agree: Agree
) -> None:
    edits, wanted = tiny_edits(3), values.search(tiny_lm("llama"), tiny_edits(3), CONFIG, TEMPLATES)
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))

    def broken(*_: Any) -> Any:
        raise TypeError("no such argument")

    monkeypatch.setattr(forward, "entered_at", broken)
    assert values.fast_path(lm, CONFIG) == "whole"
    agree(values.search(lm, edits, CONFIG, TEMPLATES).delta, wanted.delta, 1e-3)


def test_a_model_that_forgets_its_cache_runs_whole(agree: Agree) -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast")), tiny_edits(3)

    def forget(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"past_key_values": None}

    decoder: Any = lm.model.model
    with decoder.register_forward_pre_hook(forget, with_kwargs=True):
        assert values.fast_path(lm, CONFIG) == "whole"
        found = values.search(lm, edits, CONFIG, TEMPLATES)
        wanted = [search_one(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.delta, torch.stack([one.delta for one in wanted]), 1e-3)


def test_the_path_is_probed_once_a_model_and_site(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, probed = tiny_lm("llama"), []

    def probe(_lm: LM, config: SearchConfig) -> Path:
        probed.append(config.site)
        return "shared"

    monkeypatch.setattr(paths, "_probe", probe)
    for site in SITES:
        lm.notes.pop(f"fast_path_{site}", None)
    for _ in range(2):
        for site in SITES:
            assert values.fast_path(lm, replace(CONFIG, site=site)) == "shared"
    assert probed == list(SITES)
