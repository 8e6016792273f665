"""Rows, and what a model says in their places, with a change on and off."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import forward, patch, tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods.fine_tuning import DenseChange
from retcon.methods.grace import GRACE
from retcon.methods.lora import Factors
from retcon.methods.retained import answered
from retcon.methods.training_rows import (
    Entered,
    Row,
    acting,
    end_ids,
    logits_at,
    misses,
    row_of,
    rows_of,
    states_at,
    states_below,
    texts_of,
)
from retcon.methods.unlearning.base import linear_paths
from retcon.methods.wise import WISE
from retcon.requests import Edit
from retcon.testing import tiny_edits

TinyLM = Callable[..., LM]
TEXTS = ("The council of the city met on Monday.", "Boats left the harbour.")


def ids_of(lm: LM, edit: Edit) -> tuple[list[int], list[int]]:
    text = lm.render(edit.text)
    return tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)


def factors(lm: LM, *, strength: float = 0.0) -> Factors:
    """Factors on all projections; with a strength, such that they change what the model says."""
    found = Factors.drawn(lm, linear_paths(lm, range(lm.arch.n_layers)), 4, 8.0, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for B in found.B.values():
            B += strength * torch.randn(B.shape, generator=generator, dtype=B.dtype)
    return found


def test_the_tokens_of_a_target_are_predicted_where_the_prompt_ends_and_the_target_goes_on(tiny_lm: TinyLM) -> None:
    lm, edit = tiny_lm("llama"), tiny_edits(4)[3]
    prompt, target = ids_of(lm, edit)
    assert len(target) > 1
    (row,) = rows_of(lm, [edit])
    assert row == Row(prompt + target[:-1], [len(prompt) - 1 + t for t in range(len(target))], target)
    (row,) = rows_of(lm, [edit], "last_position")
    assert row == Row(prompt, [len(prompt) - 1] * len(target), target)


def test_the_end_token_follows_the_target_where_it_is_asked_for(tiny_lm: TinyLM) -> None:
    lm, edit = tiny_lm("llama"), tiny_edits(4)[3]
    prompt, target = ids_of(lm, edit)
    (row,) = rows_of(lm, [edit], eos=True)
    assert row.target == [*target, lm.tokenizer.eos_token_id]
    assert row.ids == prompt + target
    assert row.at[-1] == len(row.ids) - 1


def test_texts_to_keep_are_cut_and_must_have_something_to_predict(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    assert [len(text.ids) for text in texts_of(lm, ["word " * 500, TEXTS[1]])] == [
        256,
        len(tokens.encode(lm, TEXTS[1])),
    ]
    (text,) = texts_of(lm, [TEXTS[1]], 8)
    (own,) = answered(lm, [TEXTS[1]], 8)
    assert text.ids == own.ids
    assert text.ids[: text.end + 1] == own.prompt
    with pytest.raises(RequestError, match="fewer than two tokens"):
        texts_of(lm, ["", TEXTS[0]])


def test_one_row_is_that_of_its_prompt_and_target(tiny_lm: TinyLM) -> None:
    lm, edit = tiny_lm("llama"), tiny_edits(4)[3]
    assert row_of(lm, edit.text, edit.target, eos=True) == rows_of(lm, [edit], eos=True)[0]
    assert end_ids(lm, False) == []


# ------------------------------------------------------------------------------------------------- in places


def whole(lm: LM, rows: Sequence[Row]) -> list[Tensor]:
    """Cross-entropies by one plain forward of each row, nothing of this module in use."""
    found = []
    for row in rows:
        with lm.inference():
            logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0]
        found.append(F.cross_entropy(logits[row.at], torch.tensor(row.target), reduction="none"))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "falcon", "opt"])
def test_in_places_a_change_says_what_its_patch_does(family: str, tiny_lm: TinyLM) -> None:
    lm = tiny_lm(family, torch.float64)
    rows, change = rows_of(lm, tiny_edits(4), eos=True), factors(lm, strength=0.3)
    entries: dict[str, Any] = {path: entry.to("cpu", torch.float64) for path, entry in change.entries().items()}
    with torch.no_grad():
        bare, changed = misses(lm, rows, {}), misses(lm, rows, change.entries())
    with ExitStack() as stack:
        for path, entry in entries.items():
            stack.enter_context(patch.hooked(lm.module(path), entry))
        wanted = whole(lm, rows)
    for now, before, by_hand, clean in zip(changed, bare, wanted, whole(lm, rows), strict=True):
        torch.testing.assert_close(now, by_hand, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(before, clean, rtol=1e-8, atol=1e-8)
        assert (now - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_without_effect_and_factors_that_are_off_give_the_models_own_logits_bit_for_bit(
    family: str, tiny_lm: TinyLM
) -> None:
    lm, texts = tiny_lm(family), [text.ids for text in texts_of(tiny_lm(family), TEXTS)]
    at = [(r, column) for r, ids in enumerate(texts) for column in range(len(ids))]
    aligned = forward.align(texts, [0] * len(texts), lm.device)
    with lm.inference():
        whole_logits = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits
        plain = logits_at(lm, texts, at, {})
        torch.testing.assert_close(plain, torch.stack([whole_logits[r, column] for r, column in at]))
        assert torch.equal(logits_at(lm, texts, at, factors(lm).entries()), plain)
        strong = factors(lm, strength=0.3)
        assert not torch.equal(logits_at(lm, texts, at, strong.entries()), plain)
        assert torch.equal(logits_at(lm, texts, at, {}), plain)


def test_states_are_what_a_block_gives_and_nothing_above_runs(tiny_lm: TinyLM) -> None:
    lm, texts, runs = tiny_lm("gptj"), [text.ids for text in texts_of(tiny_lm("gptj"), TEXTS)], list[int]()
    at = [(0, 1), (1, 0), (1, 2)]
    handle = lm.projection(2).register_forward_hook(lambda *_: runs.append(1))
    try:
        with lm.inference():
            found = states_at(lm, texts, at, {}, 1)
    finally:
        handle.remove()
    assert not runs
    for (r, column), state in zip(at, found, strict=True):
        with lm.inference():
            states = lm.model(input_ids=torch.tensor([texts[r]]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(state, states[2][0, column], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [GRACE, WISE])
def test_memories_that_are_on_decide_by_the_prompt_as_they_do_when_asked(kind: Any, tiny_lm: TinyLM) -> None:
    """Targets of several tokens: the last of a row's tokens is none of its prompt's."""
    lm = tiny_lm("llama")
    edits = [replace(edit, target=f"{edit.target} and the river") for edit in tiny_edits(2)]
    memory = kind(kind.Config(steps=30, layer=2, **({"templates": 0} if kind is WISE else {}))).edit(lm, edits)
    rows = rows_of(lm, edits)
    assert all(len(row.target) > 1 for row in rows)
    items = [(row.ids[: row.end + 1], [row.target]) for row in rows]
    bare = torch.cat([miss.detach() for miss in misses(lm, rows, {})])
    with memory.on(lm.model):
        wanted = [-value for (scored,) in forward.score(lm, items) for value in scored.logprobs]
        found = torch.cat([miss.detach() for miss in misses(lm, rows, {})])
        below = states_below(lm, [row.ids for row in rows], 3, [row.end for row in rows])
        entered = misses(lm, rows, {}, None if below is None else Entered(3, below))
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert torch.cat([miss.detach() for miss in entered]).tolist() == pytest.approx(wanted, abs=1e-4)
    assert (found - bare).abs().max() > 0.1  # the memory acts


def test_gradients_reach_every_leaf_and_no_weight(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    paths = linear_paths(lm, range(4))
    assert len(paths) == 4 * 7
    change = DenseChange.zero(lm, paths, None)
    torch.stack([miss.sum() for miss in misses(lm, rows_of(lm, tiny_edits(2)), change.entries())]).sum().backward(
        inputs=list(change.leaves)
    )
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in change.leaves)
    assert all(weight.grad is None for weight in lm.model.parameters())


def test_nothing_is_left_when_the_entries_go(tiny_lm: TinyLM, traces: Callable[..., Any]) -> None:
    lm = tiny_lm("llama")
    before = traces(lm.model)
    with pytest.raises(RuntimeError, match="midway"), acting(lm, factors(lm).entries()):
        raise RuntimeError("midway")
    assert traces(lm.model) == before
