"""The fast search finds what the plain one finds: on every family, at both sites, in every company and order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from retcon import forward, tokens, values
from retcon.arch import frozen
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit
from retcon.testing import FAMILIES, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.reference import PlainSearch, search_one
from retcon.values import Found, Path, SearchConfig, Step

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]
Site = Literal["layer_out", "module_out"]

SITES: tuple[Site, ...] = ("layer_out", "module_out")
TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)
MEASURES_BY_SLOT = {"mistral", "gemma2", "gemma3", "gpt_neo", "mpt"}
"""Families whose attention knows distances by the column of a key: what rows share cannot be cut out of them."""


def evaluated(
    lm: LM, edits: Sequence[Edit], config: SearchConfig, path: Path, chunk_tokens: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """A shift a fact, as long as a third of the state, and loss and gradient there along one of the fast paths."""
    rows = [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, TEMPLATES, i)]
    with frozen(lm.model):
        base, chunks = values._prepare(lm, rows, len(edits), config, chunk_tokens, path)
        noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1), dtype=base.dtype)
        delta = base.norm(dim=1, keepdim=True) / 3 * F.normalize(noise, dim=1)
        loss, gradient, *_ = values._evaluate(lm, chunks, delta, config)
    return delta, loss, gradient


def agree(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Row by row: a fact that is wrong does not hide behind those that are right."""
    assert found.shape == wanted.shape
    error = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1).clamp_min(1e-9)
    assert error.max() <= tolerance, error.tolist()


# --------------------------------------------------------------------------- the plain search, on every family


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_the_plain_search(tiny_lm: Tiny, family: str, site: Site) -> None:
    """At an equal shift, along every path that the model allows; `_evaluate` leaves the weight decay to its caller."""
    lm, edits = tiny_lm(family), tiny_edits(4)
    config = replace(CONFIG, site=site, weight_decay=0.0)
    best = values.fast_path(lm, config)
    assert best == ("cached" if family in MEASURES_BY_SLOT else "shared")
    paths: list[Path] = ["cached", "whole"] if best == "cached" else ["shared", "cached", "whole"]
    plain = [PlainSearch(lm, edit, config, TEMPLATES) for edit in edits]
    for path in paths:
        delta, loss, gradient = evaluated(lm, edits, config, path)
        wanted = [one.loss_and_gradient(shift) for one, shift in zip(plain, delta, strict=True)]
        agree(loss[:, None], torch.stack([value for value, _ in wanted])[:, None], 1e-4)
        agree(gradient, torch.stack([slope for _, slope in wanted]), 1e-4)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_found_are_those_of_the_plain_search(tiny_lm: Tiny, family: str, site: Site) -> None:
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
def test_shifts_agree_to_the_last_digits_in_fp64(tiny_lm: Tiny, family: str, site: Site) -> None:
    """On families whose norms are computed in the model's own dtype; RMS norms are fp32 in transformers."""
    lm, edits = tiny_lm(family, torch.float64), tiny_edits(4)
    config = replace(CONFIG, site=site, steps=20)
    found = values.search(lm, edits, config, TEMPLATES)
    plain = [search_one(lm, edit, config, TEMPLATES) for edit in edits]
    assert found.delta.dtype == found.loss.dtype == torch.float64
    agree(found.delta, torch.stack([one.delta for one in plain]), 1e-8)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_layer_can_be_searched(tiny_lm: Tiny, family: str, site: Site, layer: int) -> None:
    """Below the first or above the last block nothing can be entered; then whole rows run."""
    lm, edits = tiny_lm(family), tiny_edits(2)
    config = replace(CONFIG, site=site, layer=layer, weight_decay=0.0)
    ends = (site, layer) in {("layer_out", 3), ("module_out", 0)}
    path = values.fast_path(lm, config)
    assert (path == "whole") == ends
    delta, loss, gradient = evaluated(lm, edits, config, path)
    for i, edit in enumerate(edits):
        value, slope = PlainSearch(lm, edit, config, TEMPLATES).loss_and_gradient(delta[i])
        assert float(loss[i]) == pytest.approx(float(value), rel=1e-4)
        agree(gradient[i : i + 1], slope[None], 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bloom"])
def test_the_loss_goes_down(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(6)
    config = replace(CONFIG, lr=0.05, kl=0.0625, steps=12)
    found = values.search(lm, edits, config, TEMPLATES)
    before = values.search(lm, edits, replace(config, steps=1), TEMPLATES)
    assert (found.loss < before.loss - 0.01).all()
    assert (found.probability > before.probability).all()


@pytest.mark.parametrize("kind", ["bos", "slow", "sentencepiece"])
def test_any_tokenizer_will_do(kind: str) -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind)), tiny_edits(4)
    found = values.search(lm, edits, CONFIG, TEMPLATES)
    agree(found.delta, torch.stack([search_one(lm, edit, CONFIG, TEMPLATES).delta for edit in edits]), 1e-3)


def test_options_of_the_loss_count(tiny_lm: Tiny) -> None:
    """Each weight changes what is found, and both searches by the same."""
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    usual = values.search(lm, edits, CONFIG, TEMPLATES)
    for config in (replace(CONFIG, kl=4.0), replace(CONFIG, weight_decay=20.0), replace(CONFIG, lr=0.1)):
        found = values.search(lm, edits, config, TEMPLATES)
        agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)
        assert ((found.delta - usual.delta).norm(dim=1) > 1e-2 * usual.delta.norm(dim=1)).all()
    fewer = values.search(lm, edits, CONFIG, TEMPLATES[:2])
    assert ((fewer.delta - usual.delta).norm(dim=1) > 1e-2 * usual.delta.norm(dim=1)).all()


def test_without_the_essence_there_is_no_row_for_it(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = replace(CONFIG, kl=0.0)
    found = values.search(lm, edits, config, TEMPLATES)
    agree(found.delta, torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits]), 1e-3)


def test_a_patch_that_is_on_is_part_of_the_model(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(2)
    before = values.search(lm, edits, CONFIG, TEMPLATES)
    with lm.projection(0).register_forward_hook(lambda _m, _a, y: y + 0.2 * y.roll(1, -1)):
        found = values.search(lm, edits, CONFIG, TEMPLATES)
        wanted = [search_one(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.delta, torch.stack([one.delta for one in wanted]), 1e-3)
    assert ((found.base - before.base).norm(dim=1) > 1e-2 * before.base.norm(dim=1)).all()


# --------------------------------------------------------------------------------------- facts in company


@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon"])
@pytest.mark.parametrize("stop", [-1e6, 6.7])
def test_facts_do_not_feel_each_other(tiny_lm: Tiny, family: str, stop: float) -> None:
    """Alone, together, more of them, in another order, in chunks of another size: the same shifts and stops."""
    lm, edits = tiny_lm(family), tiny_edits(5)
    config = replace(CONFIG, stop=stop, steps=10)
    together = values.search(lm, edits, config, TEMPLATES)
    order = [4, 0, 2, 1, 3]

    def same(found: Found, which: Sequence[int]) -> None:
        agree(found.delta, together.delta[list(which)], 2e-3)
        assert found.evaluations.tolist() == together.evaluations[list(which)].tolist()

    same(values.search(lm, [edits[i] for i in order], config, TEMPLATES), order)
    same(values.search(lm, edits[:3], config, TEMPLATES), range(3))
    same(values.search(lm, edits, config, TEMPLATES, chunk_tokens=24), range(5))
    same(values.search(lm, [edits[3]], config, TEMPLATES, chunk_tokens=1), [3])
    same(values.search(lm, [edits[2], edits[2]], config, TEMPLATES), [2, 2])


def test_in_fp64_company_costs_no_digit(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(6)
    config = replace(CONFIG, stop=6.7, steps=12)
    together = values.search(lm, edits, config, TEMPLATES)
    alone = [values.search(lm, [edit], config, TEMPLATES, chunk_tokens=30) for edit in edits]
    agree(together.delta, torch.cat([one.delta for one in alone]), 1e-10)


def test_the_same_search_twice_gives_the_same_bits(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    first, second = (values.search(lm, edits, CONFIG, TEMPLATES) for _ in range(2))
    for name in ("base", "delta", "loss", "evaluations", "probability"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_facts_stop_each_in_its_own_time(tiny_lm: Tiny) -> None:
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


def test_a_finished_fact_no_longer_moves_though_others_go_on(tiny_lm: Tiny) -> None:
    """Adam's momentum would go on moving it, were it only without gradient."""
    lm, edits = tiny_lm("opt"), tiny_edits(8)
    config = replace(CONFIG, stop=6.8, kl=0.0625)
    short, long = (values.search(lm, edits, replace(config, steps=steps), TEMPLATES) for steps in (7, 14))
    done = short.loss < config.stop
    assert 0 < done.sum() < len(edits)
    assert torch.equal(short.delta[done], long.delta[done])
    assert torch.equal(short.loss[done], long.loss[done])
    further = long.evaluations > 7
    assert further.any()
    assert not (short.delta[further] == long.delta[further]).all(1).any()


@pytest.mark.parametrize(("steps", "evaluations", "moves"), [(1, 1, False), (2, 1, True), (5, 4, True)])
def test_steps_leave_one_update_less(tiny_lm: Tiny, steps: int, evaluations: int, moves: bool) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = replace(CONFIG, steps=steps)
    found = values.search(lm, edits, config, TEMPLATES)
    assert found.evaluations.tolist() == [evaluations] * 2
    assert bool(found.delta.any()) == moves
    wanted = torch.stack([search_one(lm, edit, config, TEMPLATES).delta for edit in edits])
    agree(found.delta, wanted, 1e-3)


@pytest.mark.parametrize("clamp", [0.05, 0.75])
def test_shifts_stay_within_their_clamp(tiny_lm: Tiny, clamp: float) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    config = replace(CONFIG, clamp=clamp)
    found = values.search(lm, edits, config, TEMPLATES)
    length = found.delta.norm(dim=1) / found.base.norm(dim=1)
    assert (length <= clamp * (1 + 1e-5)).all()
    assert (length > 0.99 * clamp).any()
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


@pytest.mark.parametrize("clamp", [20.0, 0.3])
def test_normalised_steps_are_as_long_as_asked_for(tiny_lm: Tiny, clamp: float) -> None:
    """Along the running mean of the gradient's direction, `lr` times |h0| long; checked against a loop by hand."""
    lm, edits = tiny_lm("gpt2", torch.float64), tiny_edits(2)
    config = replace(CONFIG, optimizer="normalised", lr=0.2, momentum=0.5, steps=5, clamp=clamp)
    found = values.search(lm, edits, config, TEMPLATES)
    for i, edit in enumerate(edits):
        plain = PlainSearch(lm, edit, config, TEMPLATES)
        length = plain.base.norm()
        delta, mean = torch.zeros_like(plain.base), torch.zeros_like(plain.base)
        for _ in range(config.steps - 1):
            _, slope = plain.loss_and_gradient(delta)
            mean = 0.5 * mean + slope / slope.norm()
            delta = delta - 0.2 * length * mean / mean.norm()
            delta = delta * min(1.0, float(clamp * length / delta.norm()))
        agree(found.delta[i : i + 1], delta[None], 1e-8)


# ------------------------------------------------------------------------------------------- penalties


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


def test_the_gradient_of_a_penalty_acts_and_its_value_counts(tiny_lm: Tiny) -> None:
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


# ------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_bfloat16_products_stay_near(tiny_lm: Tiny, family: str, site: Site) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    config = replace(CONFIG, site=site, lr=0.1)
    exact = values.search(lm, edits, config, TEMPLATES)
    rough = values.search(lm, edits, replace(config, precision="bfloat16"), TEMPLATES)
    assert rough.delta.dtype == rough.loss.dtype == torch.float32
    assert not torch.equal(rough.loss, exact.loss)
    agree(rough.loss[:, None], exact.loss[:, None], 2e-2)
    agree(rough.base, exact.base, 1e-5)
    assert (F.cosine_similarity(rough.target, exact.target) > 0.99).all()
    _, _, wanted = evaluated(lm, edits, config, "cached")
    _, _, found = evaluated(lm, edits, replace(config, precision="bfloat16"), "cached")
    assert (F.cosine_similarity(found, wanted) > 0.995).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_half_precision_model_is_searched_in_fp32(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family, torch.bfloat16), tiny_edits(3)
    found = values.search(lm, edits, CONFIG, TEMPLATES)
    assert found.delta.dtype == found.base.dtype == found.loss.dtype == torch.float32
    plain = [PlainSearch(lm, edit, CONFIG, TEMPLATES) for edit in edits]
    agree(found.base, torch.stack([one.base for one in plain]), 3e-2)
    loss = torch.stack([one.loss_and_gradient(shift)[0] for one, shift in zip(plain, found.delta, strict=True)])
    assert (loss < found.loss + 0.2).all()


# -------------------------------------------------------------------------------------- rows and refusals


def test_rows_are_the_templates_and_then_the_essence(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    edit = Edit(prompt="People say that {} plays the sport of", subject="Big Ben", target="water polo")
    rows = values.rows_of(lm, edit, TEMPLATES, 3)
    target = tokens.target_ids(lm, edit.text, edit.target)
    assert len(target) > 1
    for i, row in enumerate(rows[:-1]):
        whole = tokens.encode(lm, TEMPLATES[i] + edit.text)
        assert row.ids == whole + target[:-1]
        assert tokens.decode(lm, row.ids[: row.site + 1]) == f"{TEMPLATES[i]}People say that Big Ben"
        assert (row.target, row.fact, row.template) == (target, 3, i)
        assert row.weight == pytest.approx(1 / 3)
    assert tokens.decode(lm, rows[-1].ids) == "Big Ben"
    assert (rows[-1].site, rows[-1].target, rows[-1].fact) == (len(rows[-1].ids) - 1, [], 3)
    assert values.rows_of(lm, edit, TEMPLATES, 3, essence=False) == rows[:-1]


def test_a_fact_without_a_subject_is_refused(tiny_lm: Tiny) -> None:
    edit = Edit(prompt="The capital of Peru is", subject=None, target="Rome")
    with pytest.raises(RequestError, match=r"'The capital of Peru is' has no subject.*write the subject as \{\}"):
        values.rows_of(tiny_lm("llama"), edit, ("",), 0)
    with pytest.raises(RequestError, match="has no subject"):
        values.search(tiny_lm("llama"), [*tiny_edits(1), edit], CONFIG)


def test_no_facts_are_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(RequestError, match="there is no edit"):
        values.search(tiny_lm("llama"), [], CONFIG)


@pytest.mark.parametrize("templates", [(), ("The. ",), ("The. ", "")])
def test_the_first_template_is_the_bare_prompt(tiny_lm: Tiny, templates: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="the first template is"):
        values.search(tiny_lm("llama"), tiny_edits(1), CONFIG, templates)


# ------------------------------------------------------------------------------------- the choice of a path


def test_a_model_that_cannot_be_entered_half_way_runs_whole(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    edits, wanted = tiny_edits(3), values.search(tiny_lm("llama"), tiny_edits(3), CONFIG, TEMPLATES)
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))

    def broken(*_: Any) -> Any:
        raise TypeError("no such argument")

    monkeypatch.setattr(forward, "entered_at", broken)
    assert values.fast_path(lm, CONFIG) == "whole"
    agree(values.search(lm, edits, CONFIG, TEMPLATES).delta, wanted.delta, 1e-3)


def test_a_model_that_forgets_its_cache_runs_whole() -> None:
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

    monkeypatch.setattr(values, "_probe_fast_path", probe)
    lm.notes.pop("fast_path_layer_out", None)
    lm.notes.pop("fast_path_module_out", None)
    for _ in range(2):
        for site in SITES:
            assert values.fast_path(lm, replace(CONFIG, site=site)) == "shared"
    assert probed == list(SITES)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_rows_share_is_run_once(tiny_lm: Tiny, family: str) -> None:
    """The rows of a template begin alike; those few tokens are not in the rows any more."""
    lm, edits = tiny_lm(family), tiny_edits(6)
    rows = [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, TEMPLATES, i)]
    with frozen(lm.model):
        shared = values._shared(lm, rows)
    assert shared is not None
    assert set(shared.length) == {2}  # the longest template alone is worth it
    (length,) = shared.length.values()
    heads = {tuple(row.ids[:length]) for row in rows if row.template == 2 and row.target}
    assert len(heads) == 1


# ---------------------------------------------------------------------------------------------- no traces


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
        return step.delta.sum(1)

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
