"""Where shifts start and how far they may go: given by the caller, from the clean states."""

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
from retcon.testing.reference import PlainSearch, search_one
from retcon.values import SearchConfig, Site, Step

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


def somewhere(base: Tensor) -> Tensor:
    """Shifts a third as long as the states, in another direction for each fact."""
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(5)).to(base)
    length: Tensor = base.norm(dim=-1, keepdim=True) / 3
    return length * F.normalize(noise, dim=-1)


@pytest.mark.parametrize("site", SITES)
def test_said_outright_the_defaults_change_no_bit(tiny_lm: Tiny, site: Site) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    config = replace(CONFIG, site=site, clamp=0.5)
    found = values.search(
        lm, edits, config, TEMPLATES, start=torch.zeros_like, radius=lambda base: 0.5 * base.norm(dim=-1)
    )
    wanted = values.search(lm, edits, config, TEMPLATES)
    assert torch.equal(found.delta, wanted.delta)
    assert torch.equal(found.loss, wanted.loss)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("clamp", [20.0, 0.5])
def test_the_descent_goes_on_from_the_start_as_the_plain_one(
    tiny_lm: Tiny, site: Site, clamp: float, agree: Agree
) -> None:
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(3)
    config = replace(CONFIG, site=site, clamp=clamp)
    found = values.search(lm, edits, config, TEMPLATES, start=somewhere)
    shifts = somewhere(found.base)
    plain = [search_one(lm, edit, config, TEMPLATES, start=shift) for edit, shift in zip(edits, shifts, strict=True)]
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-8)
    free = values.search(lm, edits, config, TEMPLATES)
    assert ((found.delta - free.delta).norm(dim=-1) > 1e-2 * free.delta.norm(dim=-1)).all()


def test_the_first_loss_is_that_at_the_start(tiny_lm: Tiny) -> None:
    """And a penalty sees the start; a fact that is finished there stays there."""
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    seen: list[Tensor] = []

    def penalty(step: Step) -> Tensor:
        seen.append(step.delta.detach().clone())
        return torch.zeros(len(step.facts))

    config = replace(CONFIG, stop=100.0)
    found = values.search(lm, edits, config, TEMPLATES, start=somewhere, penalty=penalty)
    assert found.evaluations.tolist() == [1, 1, 1]
    assert torch.equal(found.delta, somewhere(found.base))
    assert torch.equal(seen[0], found.delta)
    for i, edit in enumerate(edits):
        loss, _ = PlainSearch(lm, edit, config, TEMPLATES).loss_and_gradient(found.delta[i])
        assert float(found.loss[i]) == pytest.approx(float(loss), rel=1e-4)
    moved = values.search(lm, edits, replace(config, earliest_stop=1), TEMPLATES, start=somewhere)
    assert moved.evaluations.tolist() == [2, 2, 2]
    assert (moved.delta != found.delta).any(1).all()


def test_a_start_that_is_too_long_is_shortened_and_one_that_is_not_is_left(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    config = replace(CONFIG, stop=100.0)
    reach = torch.tensor([0.5, 2.0, 1e3, 1e4])
    found = values.search(lm, edits, config, TEMPLATES, start=lambda base: 10 * base, radius=lambda _base: reach)
    wanted = 10 * found.base * (reach / (10 * found.base.norm(dim=1))).clamp_max(1.0)[:, None]
    assert torch.allclose(found.delta, wanted, rtol=1e-5)
    assert torch.equal(found.delta[2:], 10 * found.base[2:])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("optimizer", ["adam", "normalised"])
def test_shifts_stay_within_the_radius_in_units_of_the_state(tiny_lm: Tiny, site: Site, optimizer: str) -> None:
    """Whatever the clamp and the length of the states; a fact with no room stays where it is."""
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    config = replace(CONFIG, site=site, clamp=1e-3, optimizer=optimizer, lr=0.5)  # type: ignore[arg-type]
    reach = torch.tensor([0.25, 1.0, 0.5, 0.0])
    if site == "attn_and_mlp_out":
        reach = torch.stack([reach, reach.flip(0)], 1)
    found = values.search(lm, edits, config, TEMPLATES, radius=lambda _base: reach)
    length = found.delta.norm(dim=-1)
    assert (length <= reach * (1 + 1e-5)).all()
    assert (length >= reach * 0.99).all()


def test_a_radius_is_that_of_the_plain_search(tiny_lm: Tiny, agree: Agree) -> None:
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(3)
    reach = torch.tensor([0.3, 2.0, 50.0], dtype=torch.float64)
    found = values.search(lm, edits, CONFIG, TEMPLATES, radius=lambda _base: reach)
    plain = [search_one(lm, edit, CONFIG, TEMPLATES, radius=reach[i]) for i, edit in enumerate(edits)]
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-8)


def test_both_are_told_the_clean_states_once(tiny_lm: Tiny) -> None:
    """They may do with them as they please."""
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    told: list[Tensor] = []

    def start(base: Tensor) -> Tensor:
        told.append(base.clone())
        return base.zero_()

    def radius(base: Tensor) -> Tensor:
        told.append(base.clone())
        return base.fill_(1.0)[:, 0]

    found = values.search(lm, edits, CONFIG, TEMPLATES, start=start, radius=radius)
    assert len(told) == 2
    assert all(torch.equal(base, found.base) for base in told)
    assert torch.equal(found.base, values.search(lm, edits, CONFIG, TEMPLATES).base)


def test_another_shape_is_refused(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    with pytest.raises(ValueError, match=r"start gave a tensor of shape \(64,\), where \(2, 64\) is needed"):
        values.search(lm, edits, CONFIG, TEMPLATES, start=lambda base: base[0])
    with pytest.raises(ValueError, match=r"radius gave a tensor of shape \(2, 64\), where \(2,\) is needed"):
        values.search(lm, edits, CONFIG, TEMPLATES, radius=torch.ones_like)
