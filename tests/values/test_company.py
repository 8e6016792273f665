"""What is found for a fact does not depend on the facts beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retcon import values
from retcon.lm import LM
from retcon.testing import tiny_edits
from retcon.values import Found, SearchConfig

Tiny = Callable[..., LM]
Agree = Callable[[Tensor, Tensor, float], None]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon"])
@pytest.mark.parametrize("stop", [-1e6, 6.7])
def test_facts_do_not_feel_each_other(tiny_lm: Tiny, family: str, stop: float, agree: Agree) -> None:
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


def test_in_fp64_company_costs_no_digit(tiny_lm: Tiny, agree: Agree) -> None:
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
