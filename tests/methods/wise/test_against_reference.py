"""The fast side memory is the plain one: the loss at each step, part by part, and what is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retcon.lm import LM
from retcon.methods.wise import WISEConfig
from retcon.methods.wise.rows import Replay, Row, Site, edit_rows, prompts_of
from retcon.methods.wise.shards import Margins, drawn_mask
from retcon.methods.wise.train import Trained, scored, train
from retcon.testing import tiny_edits
from retcon.testing.reference_wise import PlainLoss, PlainWise

TinyLM = Callable[..., LM]
EDITS = tiny_edits(4)
ORDINARY = ["The teacher wrote a book", "1, 2, 3, 5", EDITS[0].text[:12]]
"""The last is a part of an edit's prompt, at which the released code changes its margins without a word."""
TEMPLATES = ["Because it is. ", "I. "]
LAYER, STEPS, SCALE = 2, 6, 0.1
OPTIONS: list[dict[str, Any]] = [
    {},
    {"margin_tokens": "all"},
    {"scope": "subject"},
    {"scope": "subject", "margin_tokens": "all"},
    {"score": "linear"},
    {"replay": True},
]


def both(lm: LM, steps: int, options: dict[str, Any]) -> tuple[list[PlainLoss], Trained, PlainWise, Site]:
    """The first edit, written in the plain and in the fast way."""
    config = WISEConfig(lr=0.1, steps=steps, templates=2, **options)
    size = (lm.arch.d_model, lm.arch.d_mlp)
    plain = PlainWise(lm, config, LAYER, "silu", SCALE, TEMPLATES, drawn_mask(0, 0, size, 0.4))
    replayed = EDITS[1:4] if config.replay else []
    own = replayed[-1] if replayed else None
    losses = plain.write(EDITS[0], ORDINARY, replayed[:-1], own)
    site = Site(
        layer=LAYER, path=lm.arch.mlp_out[LAYER], skipped=False, score=config.score, activation="silu",
        long_prompt="mean", margins=Margins(config.alpha, config.beta, config.gamma).scaled(SCALE),
        scope=config.scope, margin_tokens=config.margin_tokens, lr=config.lr, steps=steps, clip=config.clip,
        stop=config.stop, stop_change=config.stop_change, precision="float32", stop_on=config.stop_on,
    )  # fmt: skip
    rows = edit_rows(lm, EDITS[0], TEMPLATES, subject=config.scope == "subject")
    groups: list[list[Row]] = [edit_rows(lm, edit, TEMPLATES) for edit in replayed]
    replay = Replay(groups[:-1], groups[-1]) if groups else Replay()
    found = train(lm, site, rows, prompts_of(lm, ORDINARY), plain.mask, torch.zeros(size), replay)
    return losses, found, plain, site


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_and_what_is_written_are_those_of_the_plain_way(tiny_lm: TinyLM, options: dict[str, Any]) -> None:
    lm = tiny_lm("llama", dtype=torch.float64)
    losses, found, plain, _ = both(lm, STEPS, options)
    torch.testing.assert_close(found.delta.double(), plain.delta, atol=1e-6, rtol=1e-4)
    assert len(losses) == found.evaluations == STEPS
    for number in range(1, STEPS):
        assert both(lm, number, options)[1].loss == pytest.approx(losses[number - 1].answer, rel=1e-5)
    assert found.loss == pytest.approx(losses[-1].answer, rel=1e-5)
    assert losses[-1].margins > 0
    assert (losses[-1].replay > 0) == bool(options.get("replay"))


@pytest.mark.parametrize("stop_on", ["answer", "loss"])
def test_an_edit_ends_where_the_plain_way_does(tiny_lm: TinyLM, stop_on: str) -> None:
    """With bounds that the two losses meet at different steps."""
    lm = tiny_lm("llama", dtype=torch.float64)
    options = {"alpha": 0.1, "beta": 0.2, "gamma": 0.1, "stop": 4.0, "stop_change": 1.0, "stop_on": stop_on}
    losses, found, plain, _ = both(lm, 60, options)
    assert 1 < found.evaluations == len(losses) < 60
    torch.testing.assert_close(found.delta.double(), plain.delta, atol=1e-6, rtol=1e-4)
    last = losses[-1]
    assert (last.answer if stop_on == "answer" else last.total) <= 4.0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt"])
def test_families_agree_in_fp32(tiny_lm: TinyLM, family: str) -> None:
    """Biases, Conv1D, flattened rows."""
    lm = tiny_lm(family)
    losses, found, plain, site = both(lm, 3, {})
    assert found.loss == pytest.approx(losses[-1].answer, rel=1e-4)
    torch.testing.assert_close(found.delta, plain.delta, atol=1e-4, rtol=1e-3)
    plain.measure()
    rows = edit_rows(lm, EDITS[0], TEMPLATES)
    scores = scored(lm, site, rows, found.delta)
    assert plain.threshold == pytest.approx(float(scores.mean()), rel=1e-3)
    assert plain.takes(EDITS[0]) == (float(scores[0]) > plain.config.act_ratio * plain.threshold)


def test_each_variant_writes_something_else(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama", dtype=torch.float64)
    written = [both(lm, 3, options)[1].delta for options in OPTIONS]
    for number, one in enumerate(written):
        assert all(not torch.equal(one, other) for other in written[:number])


def test_the_plain_way_learns_its_answer(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    config = WISEConfig(lr=0.5, steps=60, templates=0)
    mask = torch.ones(lm.arch.d_model, lm.arch.d_mlp, dtype=torch.bool)
    plain = PlainWise(lm, config, LAYER, "silu", SCALE, [], mask)
    assert not plain.answers(EDITS[0])
    losses = plain.write(EDITS[0], ORDINARY[:2])
    plain.measure()
    assert losses[-1].answer < losses[0].answer
    assert plain.answers(EDITS[0])
