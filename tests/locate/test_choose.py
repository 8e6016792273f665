"""The suggested window is where the evidence is largest, and planted knowledge is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.lm import LM
from retcon.locate import Tracing, attribute, suggest, trace
from retcon.locate.choose import best_window
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]


@pytest.fixture(scope="module")
def planted() -> LM:
    """A model in which no MLP but that of layer 2 says anything."""
    lm = LM.wrap(tiny_model("llama", layers=6), tiny_tokenizer("fast"))
    with torch.no_grad():
        for layer in range(6):
            weight: Any = lm.projection(layer).weight
            weight.mul_(2.0 if layer == 2 else 0.0)
    return lm


@pytest.mark.parametrize("by", ["tracing", "gradient", "integrated"])
def test_the_layer_that_holds_the_facts_is_suggested(planted: LM, by: Any) -> None:
    prompts, subjects = ("{} is in", "The {} is by the"), ("a", "city", "tower")
    edits = [Edit(prompt, subject, "x") for prompt in prompts for subject in subjects]
    with pytest.warns(RetconWarning, match="the model knows 6 of the 6 facts"):
        found = suggest(planted, edits, by=by, width=1, steps=3)
    assert found.layers == (2,)
    assert set(found.windows.values()) == {(2,)}
    for values in found.evidence.values():  # the others' effect is that of rounding
        assert values[2] > 1e4 * max(abs(value) for layer, value in enumerate(values) if layer != 2)
    assert (found.used, found.given) == (6, 6)  # the model's own answers are all known
    assert found.share == pytest.approx(1.0) if by != "tracing" else 0 < found.share < 1
    assert list(found.evidence) == (["tracing", "gradient"] if by == "tracing" else [by])


def test_the_evidence_is_the_mean_over_known_facts(tiny_lm: Tiny) -> None:
    lm, config = tiny_lm("llama"), Tracing(kind="mlp", noises=2, window=2)
    own = [Edit(edit.prompt, edit.subject, edit.target) for edit in tiny_edits(3)]
    unknown = tiny_edits(3)[1]
    assert not trace(lm, [unknown], config, where="subject")[0].known
    with pytest.warns(RetconWarning, match="the model knows 3 of the 4 facts, and the choice rests on these alone"):
        found = suggest(lm, [*own, unknown], width=2, tracing=config)
    assert (found.used, found.given) == (3, 4)
    traces = trace(lm, own, config, where="subject")
    effects = torch.stack([one.effects[:, 0] for one in traces]).mean(0).tolist()
    assert found.evidence["tracing"] == pytest.approx(effects, rel=1e-4, abs=1e-9)
    start = 1 if effects[2] > effects[3] else 2  # a window of two is centred at its second layer; layer 0 is left out
    assert found.layers == (start, start + 1)
    lost = sum(one.high - one.low for one in traces) / 3
    assert found.share == pytest.approx(effects[start + 1] / lost, rel=1e-4)
    mass = attribute(lm, own, range(4)).mass().mean(0)
    assert found.evidence["gradient"] == pytest.approx(mass.tolist(), rel=1e-4)
    assert found.windows["gradient"] == best_window(mass.tolist(), 2, lowest=1)
    with pytest.warns(RetconWarning, match="knows 0 of the 1 facts, and all are taken all the same"):
        alone = suggest(lm, [unknown], width=2, tracing=config)
    assert (alone.used, alone.given) == (1, 1)


def test_a_window_is_the_largest_sum_and_the_lowest_of_equals() -> None:
    assert best_window([1.0, 1.0, 1.0], 2) == (0, 1)
    assert best_window([-3.0, 0.0, -1.0, 5.0], 2) == (2, 3)
    assert best_window([9.0, 0.0, 1.0, 2.0], 2, lowest=1) == (2, 3)
    assert best_window([2.0, 0.0, 1.5, 1.0], 4) == (0, 1, 2, 3)


def test_wrong_requests_are_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(RetconError, match="a window of 5 layers does not fit; this model has 3 above layer 0"):
        suggest(tiny_lm("llama"), tiny_edits(1))
    with pytest.raises(RetconError, match="layers are suggested by mlp or attn"):
        suggest(tiny_lm("llama"), tiny_edits(1), width=1, tracing=Tracing())
    with pytest.raises(RequestError, match="no fact to choose layers by"):
        suggest(tiny_lm("llama"), [], width=1)
