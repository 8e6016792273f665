"""A penalty is part of the loss: of its value, its gradient and the stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.testing import tiny_edits
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Step

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


def test_a_penalty_sees_the_facts_still_searched_and_acts_on_each(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("opt"), tiny_edits(8)
    config = replace(CONFIG, stop=6.8, steps=6, kl=0.0625)
    numbers = [30, 10, 20, 70, 60, 50, 40, 0]
    seen: list[Step] = []

    def watch(step: Step) -> Tensor:
        seen.append(step)
        return torch.zeros(len(step.facts))

    free = values.search(lm, edits, config, TEMPLATES)
    found = values.search(lm, edits, config, TEMPLATES, penalty=watch, numbers=numbers)
    assert torch.equal(found.delta, free.delta)
    assert [step.number for step in seen] == list(range(int(free.evaluations.max())))
    for step in seen:
        alive = [i for i in range(8) if free.evaluations[i] > step.number]
        assert step.facts.tolist() == [numbers[i] for i in alive]
        assert torch.equal(step.base, free.base[alive])
        assert step.delta.shape == step.base.shape
    assert not seen[0].delta.any()
    assert len(seen[-1].facts) < 8


def test_the_gradient_of_a_penalty_acts_and_its_value_counts(tiny_lm: Tiny, agree: Agree) -> None:
    """A pull toward one direction, on one fact only: Adam by hand, on the plain loss and the pull."""
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(3)
    pull = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def penalty(step: Step) -> Tensor:
        return torch.where(step.facts == 1, 0.3 * step.delta @ pull + 0.1 * step.delta.square().sum(1), 0.0)

    found = values.search(lm, edits, CONFIG, TEMPLATES, penalty=penalty)
    free = values.search(lm, edits, CONFIG, TEMPLATES)
    agree(found.delta[[0, 2]], free.delta[[0, 2]], 1e-12)
    plain = PlainSearch(lm, edits[1], CONFIG, TEMPLATES)
    delta = torch.zeros(64, dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam([delta], lr=CONFIG.lr)
    for _ in range(CONFIG.steps - 1):
        adam.zero_grad()
        loss = plain.loss(delta) + 0.3 * delta @ pull + 0.1 * delta.square().sum()
        loss.backward()
        adam.step()
    agree(found.delta[1:2], delta.detach()[None], 1e-8)
    assert float(found.loss[1]) == pytest.approx(loss.item(), rel=1e-8)
    for weight in lm.model.parameters():
        weight.grad = None


def test_a_penalty_counts_for_the_stop(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)

    def penalty(step: Step) -> Tensor:
        return torch.where(step.facts == 2, -100.0, 0.0)

    found = values.search(lm, edits, replace(CONFIG, stop=0.05), TEMPLATES, penalty=penalty)
    assert found.evaluations.tolist() == [5, 5, 1]
