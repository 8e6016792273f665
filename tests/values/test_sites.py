"""The site of two parts: what attention and MLP add, each with a shift of its own, in one search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import forward, hooks, values
from retcon.errors import UnsupportedModel
from retcon.lm import LM
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Step

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, site="attn_and_mlp_out", steps=6, stop=-1e6, clamp=20.0, kl=0.5)
MLP_ALONE = replace(CONFIG, site="module_out")


@pytest.mark.parametrize("family", ["llama", "opt", "falcon", "gemma2"])
def test_the_first_part_is_what_attention_adds_and_the_second_what_the_mlp_does(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    found = values.search(lm, edits, replace(CONFIG, steps=1), TEMPLATES)
    assert found.base.shape == found.delta.shape == found.target.shape == (4, 2, 64)
    paths = {"attention": lm.arch.attn_out[1], "mlp": lm.arch.mlp_out[1]}
    for i, edit in enumerate(edits):
        (row, *_) = values.rows_of(lm, edit, TEMPLATES, i)
        batch = forward.align([row.ids], [0], lm.device)
        modules = {name: lm.module(path) for name, path in paths.items()}
        with lm.inference(), hooks.record(modules, "output") as seen:
            forward.call(lm, batch.ids, batch.mask, batch.positions)
        for part, name in enumerate(paths):
            wanted = hooks.unflattened(seen[name], 1)[0, row.site]
            assert torch.allclose(found.base[i, part], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "normalised"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "gptj"])
def test_with_the_attention_held_still_it_is_the_search_of_the_mlp_alone(
    tiny_lm: Tiny, family: str, optimizer: str, agree: Agree
) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    options = {"optimizer": optimizer, "lr": 0.5 if optimizer == "adam" else 0.1}

    def held(base: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(base)), 20.0 * base[:, 1].norm(dim=1)], 1)

    found = values.search(lm, edits, replace(CONFIG, **options), TEMPLATES, radius=held)  # type: ignore[arg-type]
    alone = values.search(lm, edits, replace(MLP_ALONE, **options), TEMPLATES)  # type: ignore[arg-type]
    assert not found.delta[:, 0].any()
    agree(found.base[:, 1], alone.base, 1e-6)
    agree(found.delta[:, 1], alone.delta, 1e-4)
    agree(found.loss[:, None], alone.loss[:, None], 1e-5)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_both_parts_move_and_reach_further_than_one(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(6)
    short = {"clamp": 0.75, "lr": 0.1, "steps": 12, "kl": 0.0}
    both = values.search(lm, edits, replace(CONFIG, **short), TEMPLATES)  # type: ignore[arg-type]
    alone = values.search(lm, edits, replace(MLP_ALONE, **short), TEMPLATES)  # type: ignore[arg-type]
    assert both.delta.any(-1).all()
    assert (both.loss < alone.loss).all()


def test_a_penalty_sees_both_parts(tiny_lm: Tiny, agree: Agree) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)

    def penalty(step: Step) -> Tensor:
        assert step.delta.shape == step.base.shape == (len(step.facts), 2, 64)
        return 1e4 * step.delta[:, 0].square().sum(1)

    found = values.search(lm, edits, replace(CONFIG, lr=0.01), TEMPLATES, penalty=penalty)
    free = values.search(lm, edits, replace(CONFIG, lr=0.01), TEMPLATES)
    agree(found.delta[:, 1], free.delta[:, 1], 0.1)
    assert (found.delta[:, 0].norm(dim=1) < 0.5 * free.delta[:, 0].norm(dim=1)).all()


def test_facts_do_not_feel_each_other_here_either(tiny_lm: Tiny, agree: Agree) -> None:
    lm, edits = tiny_lm("opt"), tiny_edits(5)
    config = replace(CONFIG, stop=6.8, steps=10, kl=0.0625)
    together = values.search(lm, edits, config, TEMPLATES)
    assert len(set(together.evaluations.tolist())) > 1
    for i, edit in enumerate(edits):
        one = values.search(lm, [edit], config, TEMPLATES, chunk_tokens=24)
        agree(one.delta, together.delta[i : i + 1], 2e-3)
        assert one.evaluations.tolist() == [int(together.evaluations[i])]


def test_weight_decay_is_the_sum_of_both_ratios(tiny_lm: Tiny) -> None:
    """At a start where no likelihood and no essence is wanted, it is all there is to the loss."""
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    shift = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    config = replace(CONFIG, steps=1, weight_decay=0.5)
    with_decay = values.search(lm, edits, config, TEMPLATES, start=lambda _base: shift)
    without = values.search(lm, edits, replace(config, weight_decay=0.0), TEMPLATES, start=lambda _base: shift)
    wanted = 0.5 * (shift.norm(dim=2) / with_decay.base.norm(dim=2).square()).sum(1)
    assert torch.allclose(with_decay.loss - without.loss, wanted, rtol=1e-3, atol=1e-5)


def test_a_family_without_an_attention_projection_is_refused() -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))
    lm.arch = replace(lm.arch, attn_out=())
    for layer in (0, 1):  # below the first block that can be entered nothing is probed
        with pytest.raises(UnsupportedModel, match=r"layers\.\d \(llama\) has no attention output projection"):
            values.search(lm, tiny_edits(1), replace(CONFIG, layer=layer), TEMPLATES)
    assert values.search(lm, tiny_edits(1), MLP_ALONE, TEMPLATES).delta.any()


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_shift_of_attention_feeds_the_mlp_where_blocks_are_sequential(tiny_lm: Tiny, family: str) -> None:
    """In a parallel block both read the same state, and the MLP gives what it gave."""
    lm, (edit,) = tiny_lm(family), tiny_edits(1)
    plain = PlainSearch(lm, edit, CONFIG, TEMPLATES)
    shift = torch.stack([torch.ones(64), torch.zeros(64)])
    with lm.inference():
        before, after = plain._run(None)[1], plain._run(shift)[1]
    moved = (after - before)[0, plain.sites[0], 1].norm() / before[0, plain.sites[0], 1].norm()
    assert (moved > 0.1) == (family == "llama")
    assert (moved < 1e-6) == (family == "gptj")
