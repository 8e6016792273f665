"""Traces are what one restore at a time in the whole model gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import forward, hooks, storage
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.locate import Trace, Tracing, trace
from retcon.locate.facts import facts_of, subject_start
from retcon.locate.tracing import _groups, _Run
from retcon.requests import Edit
from retcon.testing import FAMILIES, tiny_edits, tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]

SOME = ("llama", "gpt2", "gptj", "gemma2", "opt")
KINDS = ("hidden", "mlp", "attn")


class Plain:
    """The paper's procedure on one fact: whole rows through the whole model, one restore and one noise at a time."""

    def __init__(self, lm: LM, edit: Edit, config: Tracing, level: float) -> None:
        self.lm, self.config = lm, config
        (self.fact,) = facts_of(lm, [edit], config.answer)
        self.start = subject_start(lm, edit)
        paths = {"hidden": lm.arch.blocks, "mlp": lm.arch.mlp_out, "attn": lm.arch.attn_out}[config.kind]
        self.modules = [lm.module(path) for path in paths]
        embedding: Any = lm.model.get_input_embeddings()
        generator = torch.Generator().manual_seed(int(storage.digest(config.seed, [self.fact.ids])[:12], 16))
        shape = config.noises, self.fact.site + 1 - self.start, embedding.weight.shape[1]
        self.noises = level * torch.randn(shape, generator=generator)
        with hooks.record({str(i): module for i, module in enumerate(self.modules)}, "output") as seen:
            self.high = self.probability(None, range(0), 0)
        self.clean = [hooks.unflattened(seen[str(i)], 1)[0].clone() for i in range(len(self.modules))]
        self.low = sum(self.probability(noise, range(0), 0) for noise in self.noises) / config.noises

    @torch.no_grad()
    def probability(self, noise: Tensor | None, layers: range, token: int) -> float:
        def corrupted(states: Tensor) -> Tensor:
            states = states.clone()
            if noise is not None:
                states[0, self.start : self.fact.site + 1] += noise
            return states

        def restored(layer: int) -> Callable[[Tensor], Tensor]:
            def put(states: Tensor) -> Tensor:
                whole = hooks.unflattened(states, 1).clone()
                whole[0, token] = self.clean[layer][token]
                return whole.view(states.shape)

            return put

        model: Any = self.lm.model
        embedding: nn.Module = model.get_input_embeddings()
        handles = [embedding.register_forward_hook(lambda _m, _a, out: corrupted(out))]
        for layer in layers:
            change = restored(layer)
            handles.append(
                self.modules[layer].register_forward_hook(
                    lambda _m, _a, out, change=change: hooks.replace(out, change(hooks.hidden(out)))
                )
            )
        try:
            logits = model(torch.tensor([self.fact.ids]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits.softmax(-1)[self.fact.answer[0]])

    def grid(self, columns: Sequence[int]) -> Tensor:
        n = len(self.modules)
        found = torch.zeros(n, len(columns), dtype=torch.float64)
        for layer in range(n):
            layers = range(layer, layer + 1)
            if self.config.kind != "hidden":  # as published
                layers = range(max(0, layer - self.config.window // 2), min(n, layer - (-self.config.window // 2)))
            for place, token in enumerate(columns):
                values = [self.probability(noise, layers, token) for noise in self.noises]
                found[layer, place] = sum(values) / len(values)
        return found


def level_of(lm: LM, edits: list[Edit], noise: float) -> float:
    embedding: Any = lm.model.get_input_embeddings()
    parts = []
    for edit, fact in zip(edits, facts_of(lm, edits), strict=True):
        parts.append(embedding(torch.tensor(fact.ids[subject_start(lm, edit) : fact.site + 1])))
    return noise * float(torch.cat(parts).detach().std())


def plain_columns(found: Trace) -> list[int]:
    """Enough of a prompt's tokens: its ends, the subject's, and one before and after it."""
    first, last = found.subject
    wanted = {0, first - 1, first, (first + last) // 2, last, last + 1, len(found.tokens) - 1}
    return sorted(column for column in wanted if 0 <= column < len(found.tokens))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SOME)
def test_the_grid_is_that_of_one_plain_restore_at_a_time(tiny_lm: Tiny, family: str, kind: Any) -> None:
    lm, edits = tiny_lm(family), tiny_edits(2)
    config = Tracing(kind=kind, noises=2, window=3, seed=3)
    found = trace(lm, edits, config, batch_tokens=80)[1]
    plain = Plain(lm, edits[1], config, level_of(lm, edits, 3.0))
    assert (found.high, found.low) == pytest.approx((plain.high, plain.low), rel=1e-4)
    columns = plain_columns(found)
    wanted = plain.grid(columns)
    torch.testing.assert_close(found.restored[:, columns], wanted, atol=1e-4 * plain.high, rtol=1e-4)
    assert float((wanted - plain.low).abs().max()) > 1e-2 * plain.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [("entry_holds",), ("cache_holds",), ("entry_holds", "cache_holds")])
def test_models_that_cannot_be_entered_or_cached_give_the_same(missing: tuple[str, ...], kind: Any) -> None:
    edits, config = tiny_edits(1), Tracing(kind=kind, noises=2, window=2)
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))
    (fast,) = trace(lm, edits, config)
    assert forward.entry_holds(lm)
    assert forward.cache_holds(lm)
    lm.notes |= dict.fromkeys(missing, False)
    (slow,) = trace(lm, edits, config)
    torch.testing.assert_close(slow.restored, fast.restored, atol=1e-6, rtol=1e-4)
    assert (slow.high, slow.low) == pytest.approx((fast.high, fast.low), rel=1e-4)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SOME])
def test_on_every_family_ends_of_the_scale_are_met(tiny_lm: Tiny, family: str) -> None:
    """The last token's top state gives the clean answer; what stands before the noise, or under no block, nothing."""
    edit = Edit("The mother tongue of {} is", "Ada", "French")
    (found,) = trace(tiny_lm(family), [edit], Tracing(noises=2))
    assert found.known
    assert found.subject[0] > 0
    top = found.restored[-1]
    assert float(top[-1]) == pytest.approx(found.high, rel=1e-6)
    torch.testing.assert_close(top[:-1], torch.full_like(top[:-1], found.low))
    before = found.restored[:, : found.subject[0]]
    assert bool((before == found.low).all())
    alone = Plain(tiny_lm(family), edit, Tracing(noises=2), level_of(tiny_lm(family), [edit], 3.0))
    wanted = alone.grid([found.subject[1]])
    torch.testing.assert_close(found.restored[:, [found.subject[1]]], wanted, atol=1e-4 * found.high, rtol=1e-3)


def test_the_subject_alone_gives_the_same_figures(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = Tracing(kind="mlp", noises=2)
    for whole, alone in zip(trace(lm, edits, config), trace(lm, edits, config, where="subject"), strict=True):
        assert alone.columns == (whole.subject[1],)
        torch.testing.assert_close(alone.restored[:, 0], whole.restored[:, whole.subject[1]], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(whole.effects, whole.restored - whole.low)


def test_the_seed_decides_the_noise_and_more_noise_costs_more(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(1)
    low = [trace(lm, edits, Tracing(seed=seed), where="subject")[0].low for seed in (0, 0, 1)]
    assert low[0] == low[1] != low[2]
    faint = trace(lm, edits, Tracing(noise=1e-6), where="subject")[0]
    assert faint.low == pytest.approx(faint.high, rel=1e-3)
    torch.testing.assert_close(faint.restored, torch.full_like(faint.restored, faint.high), rtol=1e-3, atol=0)


def test_each_fact_has_its_own_noise_and_the_same_in_any_company(tiny_lm: Tiny) -> None:
    lm, (one, other) = tiny_lm("llama"), tiny_edits(2)
    with lm.inference():
        noise = [_Run(lm, fact, 1, 1.0, Tracing())._noise for fact in facts_of(lm, [one, other, one], "greedy")]
    assert torch.equal(noise[0], noise[2])
    width = min(noise[0].shape[1], noise[1].shape[1])
    assert not torch.equal(noise[0][:, 1:width], noise[1][:, 1:width])


def test_the_answer_looked_at_is_the_one_asked_for(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    edit = Edit("{} was made by", "Big Ben", "Apple", old="Nokia")
    answers = {
        name: trace(lm, [edit], Tracing(answer=name, noises=1), where="subject")[0] for name in ("old", "new", "greedy")
    }
    assert (answers["old"].answer, answers["new"].answer) == ("Nokia", "Apple")
    assert (answers["old"].known, answers["greedy"].known) == (False, True)
    assert answers["greedy"].high > max(answers["old"].high, answers["new"].high)
    assert edit.old is not None
    assert edit.old.startswith(answers["old"].token.strip())


def test_the_model_is_left_as_it_was(tiny_lm: Tiny, traces: Traces) -> None:
    lm = tiny_lm("gptj")
    before = traces(lm.model)
    trace(lm, tiny_edits(1), Tracing(kind="attn", noises=1))
    assert traces(lm.model) == before


@pytest.mark.parametrize(("columns", "width", "noises"), [(range(3, 20), 20, 3), (range(1), 1, 1), ([4], 9, 10)])
def test_runs_cover_the_columns_and_cost_no_more_than_one_or_all_at_once(
    columns: Sequence[int], width: int, noises: int
) -> None:
    def cost(runs: list[list[int]]) -> int:
        return sum(40 + noises * len(run) * (width - run[0]) for run in runs)

    runs = list(_groups(list(columns), width, noises, 400))
    assert [column for run in runs for column in run] == list(columns)
    assert all(len(run) == 1 or noises * len(run) * (width - run[0]) <= 400 for run in runs)
    assert cost(runs) <= min(cost([list(columns)]), cost([[column] for column in columns]))
    assert [len(run) for run in _groups(list(columns), width, noises, 1)] == [1] * len(columns)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Tracing(noise=0), "a noise of 0 corrupts nothing"),
        (Tracing(noises=0), "0 noises are no sample"),
        (Tracing(window=0), "a window of 0 layers is empty"),
    ],
)
def test_options_out_of_range_are_refused(tiny_lm: Tiny, config: Tracing, sentence: str) -> None:
    with pytest.raises(RetconError, match=sentence):
        trace(tiny_lm("llama"), tiny_edits(1), config)


def test_facts_that_cannot_be_traced_are_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(RequestError, match="has no subject; tracing corrupts it"):
        trace(tiny_lm("llama"), [Edit("The tower is in", None, "Rome")])
    with pytest.raises(RequestError, match="no fact to trace"):
        trace(tiny_lm("llama"), [])
