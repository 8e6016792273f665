"""PMET's dynamic rule: a target that is the argmax everywhere counts a tenth, and may end the search."""

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
from retcon.testing.reference import PlainSearch, search_one
from retcon.values import SearchConfig, Site

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ")
CONFIG = SearchConfig(layer=1, steps=14, stop=-1e6, clamp=20.0, kl=0.01, relax=True)
SUBJECTS = ("Big Ben", "Ada Lovelace", "the Blue Tower", "Málaga", "LeBron James")
EDITS = [
    Edit(prompt="We like {}", subject=subject, target=target)
    for subject, target in zip(SUBJECTS, ("the", "of", "in", "is", "a"), strict=True)
]
"""Targets of one token right after the subject: so a random model can be made to say them."""


@pytest.mark.parametrize("site", ["layer_out", "attn_and_mlp_out"])
@pytest.mark.parametrize("kl", [0.01, 4.0])
def test_it_is_the_rule_of_the_plain_search(tiny_lm: Tiny, site: Site, kl: float, agree: Agree) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    config = replace(CONFIG, site=site, kl=kl)
    found = values.search(lm, EDITS, config, TEMPLATES)
    plain = [search_one(lm, edit, config, TEMPLATES) for edit in EDITS]
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-8)
    counts = [min(len(one.losses), config.steps - 1) for one in plain]
    assert found.evaluations.tolist() == counts
    last = [one.losses[count - 1] for one, count in zip(plain, counts, strict=True)]
    assert found.loss.tolist() == pytest.approx(last, rel=1e-8)
    usual = values.search(lm, EDITS, replace(config, relax=False), TEMPLATES)
    assert not torch.isclose(found.delta, usual.delta).flatten(1).all(1).any()


def test_the_weight_follows_the_evaluation_before_and_comes_back(tiny_lm: Tiny, agree: Agree) -> None:
    """By hand; against so heavy an essence a tenth of the likelihood cannot hold the target."""
    lm = tiny_lm("gpt2", torch.float64)
    config = replace(CONFIG, kl=4.0, lr=1.0)
    found = values.search(lm, EDITS, config, TEMPLATES)
    for i, edit in enumerate(EDITS):
        plain = PlainSearch(lm, edit, config, TEMPLATES)
        delta, weights = torch.zeros_like(plain.base).requires_grad_(), [1.0]
        adam = torch.optim.Adam([delta], lr=config.lr)
        with frozen(lm.model):
            for _ in range(config.steps - 1):
                terms = plain.terms(delta)
                loss = weights[-1] * terms.nll + terms.drift + terms.decay
                adam.zero_grad()
                loss.backward()
                adam.step()
                weights.append(0.1 if terms.hit else 1.0)
        assert 1.0 in weights[weights.index(0.1) :]
        agree(found.delta[i : i + 1], delta.detach()[None], 1e-8)
        assert float(found.loss[i]) == pytest.approx(loss.item(), rel=1e-8)


def test_a_fact_stops_where_it_is_the_argmax_and_its_essence_has_hardly_moved(tiny_lm: Tiny) -> None:
    """At the first evaluation of that kind; some facts have none."""
    lm = tiny_lm("gpt2", torch.float64)
    found = values.search(lm, EDITS, CONFIG, TEMPLATES)
    stopped = found.evaluations < CONFIG.steps - 1
    assert 0 < stopped.sum() < len(EDITS)
    for i, edit in enumerate(EDITS):
        plain, met = PlainSearch(lm, edit, CONFIG, TEMPLATES), []
        for count in range(1, int(found.evaluations[i]) + 1):  # with so many steps the last shift has not been tried
            shift = values.search(lm, [edit], replace(CONFIG, steps=count), TEMPLATES).delta[0]
            with lm.inference():
                terms = plain.terms(shift)
            met.append(terms.hit and float(terms.drift) <= 0.01)
        assert met == [False] * (len(met) - 1) + [bool(stopped[i])]


def test_the_earliest_stop_holds_here_too(tiny_lm: Tiny) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    config = replace(CONFIG, kl=1e-4)
    free = values.search(lm, EDITS, config, TEMPLATES)
    late = int(free.evaluations.max())
    assert late < config.steps - 2
    found = values.search(lm, EDITS, replace(config, earliest_stop=late), TEMPLATES)
    assert found.evaluations.tolist() == [late + 1] * len(EDITS)


def test_without_an_essence_the_argmax_is_enough(tiny_lm: Tiny) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    found = values.search(lm, EDITS, replace(CONFIG, kl=0.0), TEMPLATES)
    assert (found.evaluations < CONFIG.steps - 1).all()


def test_without_the_rule_no_argmax_is_taken(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a pass over all logits."""
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    values.fast_path(lm, CONFIG)
    taken: list[int] = []
    argmax = Tensor.argmax

    def counted(self: Tensor, dim: int | None = None) -> Tensor:
        taken.append(1)
        return argmax(self, dim)

    monkeypatch.setattr(Tensor, "argmax", counted)
    values.search(lm, edits, replace(CONFIG, relax=False, steps=3), TEMPLATES)
    assert not taken
    values.search(lm, edits, replace(CONFIG, steps=3), TEMPLATES)
    assert taken
