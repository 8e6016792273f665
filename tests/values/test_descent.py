"""Steps, stops and clamps: each fact by its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.arch import frozen
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.reference import PlainSearch, search_one
from retcon.values import SearchConfig, Site

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

SITES: tuple[Site, ...] = ("layer_out", "module_out", "attn_and_mlp_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bloom"])
def test_the_loss_goes_down(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(6)
    config = replace(CONFIG, lr=0.05, kl=0.0625, steps=12)
    found = values.search(lm, edits, config, TEMPLATES)
    before = values.search(lm, edits, replace(config, steps=1), TEMPLATES)
    assert (found.loss < before.loss - 0.01).all()
    assert (found.probability > before.probability).all()


def test_facts_stop_each_in_its_own_time(tiny_lm: Tiny, agree: Agree) -> None:
    """With an update before no stop and a stop before every update, as in the plain search; then a fact is frozen."""
    lm, edits = tiny_lm("opt"), tiny_edits(8)
    config = replace(CONFIG, stop=6.8, steps=12, kl=0.0625)
    heard: list[float] = []
    found = values.search(lm, edits, config, TEMPLATES, advance=heard.append)
    plain = [search_one(lm, edit, config, TEMPLATES) for edit in edits]
    counts = found.evaluations.tolist()
    assert len(set(counts)) >= 3
    assert min(counts) < 11
    for i, one in enumerate(plain):
        assert counts[i] == min(len(one.losses), config.steps - 1)
        assert float(found.loss[i]) == pytest.approx(one.losses[counts[i] - 1], rel=1e-4)
        if len(one.losses) < config.steps:
            assert float(found.loss[i]) < config.stop <= min(one.losses[:-1], default=float("inf"))
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-3)
    assert sum(heard) == len(edits)


def test_a_fact_that_is_known_already_is_left_alone(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    found = values.search(lm, edits, replace(CONFIG, stop=100.0), TEMPLATES)
    assert found.evaluations.tolist() == [1, 1, 1]
    assert not found.delta.any()
    assert torch.equal(found.target, found.base)


@pytest.mark.parametrize("earliest", [1, 3])
def test_no_fact_is_finished_before_the_earliest_stop(tiny_lm: Tiny, earliest: int, agree: Agree) -> None:
    """Though it has met every stop; then it stops at once."""
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    config = replace(CONFIG, stop=100.0, stop_probability=0.0, earliest_stop=earliest)
    found = values.search(lm, edits, config, TEMPLATES)
    assert found.evaluations.tolist() == [earliest + 1] * 3
    assert found.delta.any(1).all()
    agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)


@pytest.mark.parametrize(("steps", "evaluations", "moves"), [(1, 1, False), (2, 1, True), (5, 4, True)])
def test_steps_leave_one_update_less(tiny_lm: Tiny, steps: int, evaluations: int, moves: bool, agree: Agree) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = replace(CONFIG, steps=steps)
    found = values.search(lm, edits, config, TEMPLATES)
    assert found.evaluations.tolist() == [evaluations] * 2
    assert bool(found.delta.any()) == moves
    wanted = torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits])
    agree(found.delta, wanted, 1e-3)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("clamp", [0.05, 0.75])
def test_shifts_stay_within_their_clamp(tiny_lm: Tiny, clamp: float, site: Site, agree: Agree) -> None:
    """Each part within its own; at a small clamp every part of every fact comes to its end."""
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    config = replace(CONFIG, clamp=clamp, site=site)
    found = values.search(lm, edits, config, TEMPLATES)
    length = found.delta.norm(dim=-1) / found.base.norm(dim=-1)
    assert (length <= clamp * (1 + 1e-5)).all()
    at_end = length > 0.99 * clamp
    assert at_end.all() if clamp < 0.1 else at_end.any()
    agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)


def test_the_stop_by_probability_looks_at_the_least_likely_token_of_all_rows(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("opt"), tiny_edits(6)
    free = values.search(lm, edits, replace(CONFIG, steps=12), TEMPLATES)
    config = replace(CONFIG, steps=12, stop_probability=5e-4)
    found = values.search(lm, edits, config, TEMPLATES)
    assert (found.evaluations <= free.evaluations).all()
    done = found.evaluations < free.evaluations
    assert 0 < done.sum() < 6
    for i in done.nonzero()[:, 0].tolist():
        for count, reached in ((int(found.evaluations[i]), True), (int(found.evaluations[i]) - 1, False)):
            if count < 1:
                continue  # reached at once
            shift = values.search(lm, [edits[i]], replace(CONFIG, steps=count), TEMPLATES).delta[0]
            assert (least_probability(lm, edits[i], shift) >= 5e-4) == reached


def least_probability(lm: LM, edit: Edit, delta: Tensor) -> float:
    plain = PlainSearch(lm, edit, CONFIG, TEMPLATES)
    with frozen(lm.model), torch.no_grad():
        logprobs = plain._run(delta)[0].log_softmax(-1)
    starts = [length - len(plain.target) for length in plain.lengths[:-1]]
    return min(
        float(logprobs[row, start + t, token].exp())
        for row, start in enumerate(starts)
        for t, token in enumerate(plain.target)
    )


def test_the_probability_told_is_the_geometric_mean_over_tokens_and_rows(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    config = replace(CONFIG, steps=2, kl=0.0, weight_decay=0.0)
    found = values.search(lm, edits, config, TEMPLATES)
    assert torch.allclose(found.probability, (-found.loss).exp(), rtol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("clamp", [20.0, 0.3])
def test_normalised_steps_are_as_long_as_asked_for(tiny_lm: Tiny, clamp: float, site: Site, agree: Agree) -> None:
    """Along the running mean of the gradient's direction, `lr` times |h0| long, each part by its own."""
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(2)
    config = replace(CONFIG, site=site, optimizer="normalised", lr=0.2, momentum=0.5, steps=5, clamp=clamp)
    found = values.search(lm, edits, config, TEMPLATES)
    for i, edit in enumerate(edits):
        plain = PlainSearch(lm, edit, config, TEMPLATES)
        length = plain.base.norm(dim=-1, keepdim=True)
        delta, mean = torch.zeros_like(plain.base), torch.zeros_like(plain.base)
        for _ in range(config.steps - 1):
            _, slope = plain.loss_and_gradient(delta)
            mean = 0.5 * mean + slope / slope.norm(dim=-1, keepdim=True)
            delta = delta - 0.2 * length * mean / mean.norm(dim=-1, keepdim=True)
            delta = delta * (clamp * length / delta.norm(dim=-1, keepdim=True)).clamp_max(1.0)
        agree(found.delta[i : i + 1], delta[None], 1e-8)


def test_no_facts_are_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(RequestError, match="there is no edit"):
        values.search(tiny_lm("llama"), [], CONFIG)


@pytest.mark.parametrize("templates", [(), ("The. ",), ("The. ", "")])
def test_the_first_template_is_the_bare_prompt(tiny_lm: Tiny, templates: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="the first template is"):
        values.search(tiny_lm("llama"), tiny_edits(1), CONFIG, templates)
