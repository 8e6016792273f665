"""Facts that share one shift: what is sought, how far it goes, when it stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Site
from retcon.values.ties import Ties

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5, optimizer="normalised", lr=0.2, momentum=0.5)


def tie(edits: list[Edit], *members: int, target: str = "Rome") -> list[Edit]:
    return [replace(edit, tie="t", target=target) if i in members else edit for i, edit in enumerate(edits)]


def test_ties_of_one_are_none() -> None:
    edits = tiny_edits(3)
    assert Ties.of(edits, torch.device("cpu")) is None
    assert Ties.of([replace(edit, tie=str(n)) for n, edit in enumerate(edits)], torch.device("cpu")) is None


def test_means_and_leasts_are_taken_over_each_unit() -> None:
    ties = Ties.of(tie(tiny_edits(4), 0, 2), torch.device("cpu"))
    assert ties is not None
    assert ties.mean(torch.tensor([[1.0], [2.0], [5.0], [7.0]])).tolist() == [[3.0], [2.0], [3.0], [7.0]]
    assert ties.least(torch.tensor([0.5, 0.2, 0.4, 0.9])).tolist() == pytest.approx([0.4, 0.2, 0.4, 0.9])
    assert ties.every(torch.tensor([True, True, False, True])).tolist() == [False, True, False, True]


@pytest.mark.parametrize("site", ["layer_out", "module_out", "attn_and_mlp_out"])
def test_a_shared_shift_goes_down_the_mean_loss(tiny_lm: Tiny, site: Site, agree: Agree) -> None:
    """By the plain search's losses, in steps of the mean length; the fact beside the tie goes its own way."""
    lm = tiny_lm("gpt2", torch.float64)
    edits, config = tie(tiny_edits(3), 0, 2), replace(CONFIG, site=site)
    found = values.search(lm, edits, config, TEMPLATES)
    plain = [PlainSearch(lm, edits[i], config, TEMPLATES) for i in (0, 2)]
    length = torch.stack([one.base.norm(dim=-1, keepdim=True) for one in plain]).mean(0)
    delta, memory = torch.zeros_like(plain[0].base), torch.zeros_like(plain[0].base)
    for _ in range(config.steps - 1):
        slope = torch.stack([one.loss_and_gradient(delta)[1] for one in plain]).mean(0)
        memory = 0.5 * memory + slope / slope.norm(dim=-1, keepdim=True)
        delta = delta - 0.2 * length * memory / memory.norm(dim=-1, keepdim=True)
    agree(found.delta[:1], delta[None], 1e-8)
    assert torch.equal(found.delta[0], found.delta[2])
    for i, one in ((0, plain[0]), (2, plain[1])):
        agree(found.base[i : i + 1], one.base[None], 1e-9)
        agree(found.target[i : i + 1], (one.base + delta)[None], 1e-8)
    alone = values.search(lm, [edits[1]], config, TEMPLATES)
    agree(found.delta[1:2], alone.delta, 1e-9)


@pytest.mark.parametrize("optimizer", ["normalised", "adam"])
def test_copies_of_one_fact_find_its_own_shift(tiny_lm: Tiny, optimizer: Literal["adam", "normalised"]) -> None:
    lm, (edit,) = tiny_lm("llama", torch.float64), tiny_edits(1)
    config = replace(CONFIG, optimizer=optimizer)
    alone = values.search(lm, [edit], config, TEMPLATES)
    copies = values.search(lm, [replace(edit, tie="t")] * 2, config, TEMPLATES)
    assert torch.allclose(copies.delta, alone.delta.expand_as(copies.delta), rtol=1e-9, atol=1e-12)


def test_the_order_of_the_members_changes_nothing(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama", torch.float64), tie(tiny_edits(3), 0, 1, 2)
    one = values.search(lm, edits, CONFIG, TEMPLATES)
    other = values.search(lm, edits[::-1], CONFIG, TEMPLATES)
    assert torch.allclose(one.delta, other.delta, rtol=1e-10, atol=1e-12)
    assert torch.allclose(one.target, other.target.flip(0), rtol=1e-10, atol=1e-12)


def test_a_shared_shift_stays_within_the_mean_radius(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tie(tiny_edits(4), 0, 1, 3)
    found = values.search(lm, edits, replace(CONFIG, clamp=0.1), TEMPLATES)
    sizes = found.base.norm(dim=1)
    assert float(found.delta[0].norm()) == pytest.approx(0.1 * float(sizes[[0, 1, 3]].mean()), rel=1e-4)
    assert float(found.delta[2].norm()) == pytest.approx(0.1 * float(sizes[2]), rel=1e-4)


def test_members_stop_together_once_all_are_there(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("opt"), tie(tiny_edits(4), 0, 1, 2)
    config = replace(CONFIG, steps=12, lr=0.1, stop_probability=1e-4)
    found = values.search(lm, edits, config, TEMPLATES)
    counts = found.evaluations.tolist()
    assert len(set(counts[:3])) == 1
    assert len(set(found.loss[:3].tolist())) == 1
    assert 1 < counts[0] < 11
    longest = replace(config, steps=counts[0], stop_probability=None)  # one update less than would stop
    before = values.search(lm, edits, longest, TEMPLATES)
    assert torch.allclose(before.delta[0], found.delta[0], rtol=1e-4, atol=1e-6)
