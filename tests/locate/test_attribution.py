"""Scores are what one plain row through the whole model gives, by calculus and by finite differences."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import hooks, tokens
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.locate import attribute, top_neurons
from retcon.locate.facts import Fact, facts_of
from retcon.patch import LowRank, hooked
from retcon.requests import Edit
from retcon.testing import FAMILIES, tiny_edits

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]

SOME = ("llama", "gpt2", "gptj", "gemma2", "opt")
LAYERS = (0, 1, 2, 3)


def plain_value(lm: LM, fact: Fact, layer: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """F of one whole row through the whole model, k at the site of `layer` passed through `change`."""

    def changed(states: Tensor) -> Tensor:
        whole = hooks.unflattened(states, 1).clone()
        whole[:, fact.site] = change(whole[:, fact.site].clone())
        return whole.view(states.shape)

    model: Any = lm.model
    with hooks.rewritten_input(lm.projection(layer), changed):
        logits = model(torch.tensor([fact.ids + fact.answer[:-1]]), use_cache=False).logits[0]
    logprobs = logits[len(fact.ids) - 1 :].log_softmax(-1)
    value: Tensor = logprobs[torch.arange(len(fact.answer)), torch.tensor(fact.answer)].sum()
    return value


def plain_gradient(lm: LM, fact: Fact, layer: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """k, and dF/dk where k is scaled by `scale`."""
    kept: list[Tensor] = []

    def leaf(key: Tensor) -> Tensor:
        kept.extend([key.detach(), (scale * key.detach()).requires_grad_()])
        return kept[1]

    plain_value(lm, fact, layer, leaf).backward()
    lm.model.zero_grad()
    assert kept[1].grad is not None
    return kept[0][0], kept[1].grad[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_form_is_that_of_plain_rows_on_every_family(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(3)
    found = attribute(lm, edits, LAYERS, batch_tokens=40)
    for i, fact in enumerate(facts_of(lm, edits)):
        value = float(plain_value(lm, fact, 0, lambda key: key).detach())
        assert float(found.logprob[i]) == pytest.approx(value, rel=1e-4)
        for layer in LAYERS:
            key, slope = plain_gradient(lm, fact, layer)
            wanted = key * slope
            torch.testing.assert_close(found.scores[layer][i], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_integrated_form_is_the_right_hand_sum_of_plain_rows(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(2)
    found = attribute(lm, edits, (2, 0), how="integrated", steps=2, batch_tokens=30)
    assert found.layers == (2, 0)
    for i, fact in enumerate(facts_of(lm, edits)):
        for layer in (0, 2):
            (key, half), (_, last) = plain_gradient(lm, fact, layer, 0.5), plain_gradient(lm, fact, layer)
            wanted = key * (half + last) / 2
            torch.testing.assert_close(found.scores[layer][i], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_the_gradient_agrees_with_finite_differences(tiny_lm: Tiny) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    edits = tiny_edits(2)
    found = attribute(lm, edits, (1,))
    step = 1e-5
    for i, fact in enumerate(facts_of(lm, edits)):
        key, _ = plain_gradient(lm, fact, 1)
        with torch.no_grad():
            for neuron in range(0, lm.arch.d_mlp, 9):
                nudge = torch.zeros_like(key)
                nudge[neuron] = step
                up, down = (
                    plain_value(lm, fact, 1, lambda k, by=by: k + by).detach()  # type: ignore[misc]
                    for by in (nudge, -nudge)
                )
                slope = float(up - down) / (2 * step)
                assert float(found.scores[1][i, neuron]) == pytest.approx(float(key[neuron]) * slope, abs=1e-8)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt"])  # a norm after the MLP jumps at k = 0
def test_integrated_scores_sum_to_what_the_neurons_change_up_to_one_over_m(tiny_lm: Tiny, family: str) -> None:
    """The right-hand sum of g(a) = dF/da along the path misses by (g(1) - g(0)) / 2m, and by O(1/m^2) beside that."""
    lm, edit = tiny_lm(family, torch.float64), tiny_edits(3)[2]
    (fact,) = facts_of(lm, [edit])
    with torch.no_grad():
        whole = float(plain_value(lm, fact, 1, lambda k: k) - plain_value(lm, fact, 1, torch.zeros_like))
    (key, last), (_, first) = plain_gradient(lm, fact, 1), plain_gradient(lm, fact, 1, 0.0)
    rise = float(key @ (last - first))
    assert abs(rise) > 1e-4
    gaps = {}
    for steps in (16, 64):
        found = attribute(lm, [edit], (1,), how="integrated", steps=steps)
        gaps[steps] = abs(float(found.scores[1].sum()) - whole - rise / (2 * steps))
    assert gaps[16] < abs(rise) / 32
    assert gaps[64] < 0.1 * gaps[16] + 1e-7


def test_where_the_answer_is_linear_in_the_neurons_both_forms_agree(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(3)
    weight: Any = lm.projection(1).weight
    with torch.no_grad():
        weight.mul_(1e-7)  # so small an effect on the stream that the rest of the model is linear in it
    try:
        forms = [attribute(lm, edits, (1,), how=how, steps=4).scores[1] for how in ("gradient", "integrated")]
    finally:
        with torch.no_grad():
            weight.mul_(1e7)
    assert float(forms[0].abs().max()) > 0
    torch.testing.assert_close(forms[0], forms[1], rtol=1e-5, atol=1e-7 * float(forms[0].abs().max()))


@pytest.mark.parametrize("how", ["gradient", "integrated"])
@pytest.mark.parametrize("family", SOME)
def test_a_batch_gives_what_single_facts_give(tiny_lm: Tiny, family: str, how: Any) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    together = attribute(lm, edits, (1, 2), how=how, steps=3)
    for i, edit in enumerate(edits):
        alone = attribute(lm, [edit], (1, 2), how=how, steps=3)
        assert alone.answers[0] == together.answers[i]
        for layer in (1, 2):
            scale = float(alone.scores[layer].abs().max())
            torch.testing.assert_close(together.scores[layer][i], alone.scores[layer][0], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("how", ["gradient", "integrated"])
def test_a_contrast_is_old_minus_new(tiny_lm: Tiny, how: Any) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    old, new, both = (
        attribute(lm, edits, (1,), answer=answer, how=how, steps=3) for answer in ("old", "new", "contrast")
    )
    torch.testing.assert_close(both.scores[1], old.scores[1] - new.scores[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(both.logprob, old.logprob - new.logprob, rtol=1e-4, atol=1e-5)
    assert (both.answers, both.against) == (old.answers, new.answers)
    assert old.against == ("", "", "")


def test_without_an_old_answer_the_model_s_own_is_looked_at(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    edits = [Edit("{} was made by", "Big Ben", "Apple")]
    (fact,) = facts_of(lm, edits)
    model: Any = lm.model
    with torch.no_grad():
        first = int(model(torch.tensor([fact.ids])).logits[0, -1].argmax())
    assert fact.answer[0] == first
    assert facts_of(lm, edits, "greedy") == [fact]
    assert 1 <= len(fact.answer) <= 5
    torch.testing.assert_close(
        attribute(lm, edits, (1,)).scores[1], attribute(lm, edits, (1,), answer="greedy").scores[1]
    )


def test_an_edit_without_a_subject_is_read_at_the_end_of_its_prompt(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    (fact,) = facts_of(lm, [Edit("The tower is in the city of", None, "Rome", old="Paris")])
    assert fact.site == len(fact.ids) - 1
    assert tokens.decode(lm, fact.ids) == "The tower is in the city of"
    subject = Edit("{} is in the city of", "The tower", "Rome", old="Paris")
    found = attribute(lm, [Edit(subject.text, None, "Rome", old="Paris"), subject], (3,))
    assert float(found.scores[3][0].abs().max()) > 0
    assert float(found.scores[3][1].abs().max()) == 0  # nothing above the last layer carries it to the answer


def test_a_change_that_is_on_counts(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(1)
    generator = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(64, 2, generator=generator), torch.randn(112, 2, generator=generator))
    with hooked(lm.projection(1), change):
        found = attribute(lm, edits, (1,))
        (fact,) = facts_of(lm, edits)
        key, slope = plain_gradient(lm, fact, 1)
    torch.testing.assert_close(found.scores[1][0], key * slope, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(found.scores[1], attribute(lm, edits, (1,)).scores[1])


@pytest.mark.parametrize("how", ["gradient", "integrated"])
def test_the_model_is_left_as_it_was(tiny_lm: Tiny, traces: Traces, how: Any) -> None:
    lm = tiny_lm("gptj")
    before = traces(lm.model)
    attribute(lm, tiny_edits(2), (1,), how=how, steps=2)
    assert traces(lm.model) == before


def test_a_layer_s_mass_is_the_sum_of_its_magnitudes(tiny_lm: Tiny) -> None:
    found = attribute(tiny_lm("llama"), tiny_edits(2), (2, 1))
    assert found.mass().shape == (2, 2)
    torch.testing.assert_close(found.mass()[:, 0], found.scores[2].abs().sum(1))


def test_top_neurons_hold_the_share_and_not_one_more() -> None:
    scores = torch.tensor([[4.0, -3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.1, 9.0, 0.0, 0.0]])
    assert top_neurons(scores, 0.9).tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [False, True, False, False],
    ]
    assert top_neurons(scores, 0.0).sum(1).tolist() == [1, 1, 1]
    drawn = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))
    assert bool(top_neurons(drawn, 1.0).all())
    chosen = top_neurons(drawn, 0.8)
    held = (drawn.abs() * chosen).sum(1) / drawn.abs().sum(1)
    assert 0.78 < float(held.min()) <= float(held.max()) <= 0.8
    least = drawn.abs().masked_fill(~chosen, 9).amin(1)
    assert bool((least >= drawn.abs().masked_fill(chosen, 0).amax(1)).all())


def test_a_missing_extra_is_named(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RetconError, match=r"pip install 'retcon-lm\[explain\]'"):
        attribute(tiny_lm("llama"), tiny_edits(1), (1,), how="integrated")


def test_wrong_requests_are_refused(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(RetconError, match="no layer 4; this model's layers are 0 to 3"):
        attribute(lm, tiny_edits(1), (4,))
    with pytest.raises(RetconError, match="1 step is no integral"):
        attribute(lm, tiny_edits(1), (1,), how="integrated", steps=1)
    with pytest.raises(RequestError, match="no fact"):
        attribute(lm, [], (1,))
