"""BLUE: two layers, each to targets of its own, in full; and its host where there is one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from retcon import hooks, tokens, values
from retcon.lm import LM
from retcon.methods import METHODS, MEMITBlue
from retcon.methods.family import search_config
from retcon.patch import LowRank, Patch
from retcon.requests import Edit
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import quick
from retcon.values import Found, SearchConfig

HOSTS = ("memit", "pmet", "alphaedit")
hosts = pytest.mark.parametrize("host", HOSTS)


@cache
def lm(family: str = "llama") -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


def blue(host: str, **options: Any) -> Any:
    return quick(f"{host}-blue", rounds=1, **options)


@hosts
def test_with_one_layer_it_is_its_host(host: str) -> None:
    edits = tiny_edits(3)
    one, other = (quick(name, layers=(1,), rounds=1).edit(lm(), edits).entries for name in (host, f"{host}-blue"))
    path = lm().arch.mlp_out[1]
    assert torch.equal(one[path].delta(), other[path].delta())


@hosts
def test_only_the_first_and_the_last_layer_are_edited(host: str) -> None:
    rule = blue(host, layers=(0, 1, 2))
    assert METHODS[f"{host}-blue"].Config is METHODS[host].Config
    assert rule.layers(lm()) == (0, 2)
    assert list(rule.edit(lm(), tiny_edits(1)).entries) == [lm().arch.mlp_out[0], lm().arch.mlp_out[2]]


def at_block(model: LM, layer: int) -> torch.Tensor:
    """Output of a block at each edit's subject."""
    found, path = [], model.arch.blocks[layer]
    for edit in tiny_edits(3):
        row = tokens.locate_subject(model, edit.prompt, edit.subject or "")
        with model.inference(), hooks.record({path: model.module(path)}, "output") as seen:
            model.model(input_ids=torch.tensor([row.ids]))
        found.append(seen[path].view(len(row.ids), -1)[row.site])
    return torch.stack(found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("host", ["memit", "alphaedit"])
def test_each_layer_is_written_in_full_to_a_target_sought_at_it(host: str, family: str) -> None:
    model, edits = lm(family), tiny_edits(3)
    light = {"ridge": 1e-4} if host == "memit" else {"l2": 1e-4}
    rule = blue(host, layers=(1, 2), **light)
    patch = rule.edit(model, edits)
    first = values.search(model, edits, search_config(rule.config, 1, "layer_out"))
    lower = Patch({model.arch.mlp_out[1]: patch.entries[model.arch.mlp_out[1]]}, patch.base)
    with lower.on(model.model):
        assert (at_block(model, 1) - first.target).norm() < 0.01 * first.delta.norm()
        second = values.search(model, edits, search_config(rule.config, 2, "layer_out"))
    assert second.delta.norm() > 0
    with patch.on(model.model):
        assert (at_block(model, 2) - second.target).norm() < 0.05 * second.delta.norm()


class Content(MEMITBlue):
    """BLUE whose search at the last layer finds the answer good enough as it is."""

    def find(
        self,
        lm: LM,
        edits: Sequence[Edit],
        search: SearchConfig,
        texts: Sequence[str],
        stores: Sequence[Store],
        written: Sequence[LowRank],
    ) -> tuple[Found, int]:
        return super().find(lm, edits, replace(search, stop=100.0) if written else search, texts, stores, written)


def test_where_the_first_write_is_enough_the_last_layer_is_left_alone() -> None:
    """Its search stops at its first evaluation, and there is nothing to write."""
    patch = Content(blue("memit", layers=(1, 2)).config).edit(lm(), tiny_edits(2))
    first, second = (patch.entries[lm().arch.mlp_out[layer]].delta() for layer in (1, 2))
    assert first.norm() > 0.1
    assert second.norm() < 1e-3 * first.norm()
    assert all(fact["evaluations"] == 1 for fact in patch.info["facts"])
