"""The clean pass runs once what rows share, and keeps no more than the descent needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.reference import search_one
from retcon.values import Row, SearchConfig
from retcon.values.clean import prepare, shared_heads

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=2, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


def rows_of(lm: LM, edits: list[Edit]) -> list[Row]:
    return [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, TEMPLATES, i)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_rows_share_is_run_once(tiny_lm: Tiny, family: str) -> None:
    """The rows of a template begin alike; those few tokens are not in the rows any more."""
    lm = tiny_lm(family)
    rows = rows_of(lm, tiny_edits(6))
    with frozen(lm.model):
        shared = shared_heads(lm, rows)
    assert shared is not None
    assert set(shared.length) == {2}  # the longest template alone is worth it
    (length,) = shared.length.values()
    heads = {tuple(row.ids[:length]) for row in rows if row.template == 2 and row.target}
    assert len(heads) == 1


def test_layers_below_the_site_are_not_held(tiny_lm: Tiny) -> None:
    """Neither in chunks with tokens of their own before the site, nor in those that have only shared ones."""
    lm, edits = tiny_lm("llama"), short_edits()
    with frozen(lm.model):
        _, chunks = prepare(lm, rows_of(lm, edits), len(edits), CONFIG, 12, "shared")
    pasts = [chunk.past for chunk in chunks if chunk.past]
    assert len({past[-1][0].shape[2] for past in pasts}) > 1
    for past in pasts:
        assert len(past) == 4
        for layer, (keys, states) in enumerate(past):
            held = keys.untyped_storage().nbytes() + states.untyped_storage().nbytes()
            assert (held <= 2 * keys.element_size()) == (layer < 3)
            assert keys.shape == past[-1][0].shape


def short_edits() -> list[Edit]:
    """Subjects of one token at the start: after a shared template nothing else stands before the site."""
    texts = ("Rome", "Paris", "Lima", "Cairo")
    return [Edit(prompt="{} is in", subject=text, target="Greek") for text in texts]


@pytest.mark.parametrize("site", ["layer_out", "attn_and_mlp_out"])
def test_rows_with_nothing_but_shared_tokens_before_the_site_are_right(tiny_lm: Tiny, site: str, agree: Agree) -> None:
    lm, edits = tiny_lm("llama"), short_edits()
    config = replace(CONFIG, site=site)  # type: ignore[arg-type]
    assert values.fast_path(lm, config) == "shared"
    found = values.search(lm, edits, config, TEMPLATES, chunk_tokens=12)
    wanted = [search_one(lm, edit, config, TEMPLATES) for edit in edits]
    agree(found.delta, torch.stack([one.delta for one in wanted]), 1e-3)
