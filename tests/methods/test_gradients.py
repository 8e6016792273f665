"""What projections read and how they should change, against autograd's own weight gradients and plain single rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import hooks, tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods.gradients import read_answers
from retcon.methods.mlp_sites import mlp_in
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

F64 = torch.float64
TinyLM = Callable[..., LM]


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm().clamp_min(1e-300)


def paths_of(lm: LM) -> list[str]:
    return [path for layer in (1, 2) for path in (*mlp_in(lm, layer), lm.arch.mlp_out[layer])]


def one_token(lm: LM) -> str:
    """An answer of one token."""
    return next(word for word in ("Paris", "city", "in", "of", "the") if len(tokens.target_ids(lm, "The", word)) == 1)


def single_token(lm: LM) -> Edit:
    """A prompt of one token, so that every position of its row predicts an answer token."""
    prompt = next(word for word in ("the", "a", "is", "x", "1") if len(tokens.encode(lm, word)) == 1)
    edit = Edit(prompt=prompt, target="chess and basketball in the city")
    assert len(tokens.target_ids(lm, prompt, edit.target)) > 4
    return edit


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "gemma2", "falcon"])
def test_over_all_positions_the_rows_make_the_weights_gradient(family: str) -> None:
    """G^T H is what autograd gives for the weight, in (out, in) orientation, where every position is read."""
    lm = LM.wrap(tiny_model(family, dtype=torch.float32 if family == "gemma2" else F64), tiny_tokenizer())
    edit = single_token(lm)
    paths = paths_of(lm)
    answers = read_answers(lm, [edit], paths)
    target = tokens.target_ids(lm, edit.prompt, edit.target)
    row = [*tokens.encode(lm, edit.prompt), *target]
    logits = lm.model(input_ids=torch.tensor([row[:-1]])).logits[0]
    loss = nn.functional.cross_entropy(logits, torch.tensor(target))
    near(answers.losses.mean(), loss.detach(), 1e-5)
    weights: list[Any] = [lm.module(path).weight for path in paths]
    for path, slope in zip(paths, torch.autograd.grad(loss, weights), strict=True):
        wanted = slope.T if lm.arch.conv1d else slope
        gradients = answers.gradients[path] / len(target)  # of a mean, not a sum
        near(gradients.T @ answers.inputs[path], wanted, 1e-4)


def one_by_one(lm: LM, edit: Edit, path: str) -> tuple[Tensor, Tensor]:
    """Inputs and gradients of the summed loss where answers are predicted: one plain row, no padding."""
    prompt = tokens.encode(lm, edit.text)
    target = tokens.target_ids(lm, edit.text, edit.target)
    module, kept = lm.module(path), []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.extend([args[0].detach(), output.detach().requires_grad_()])
        return kept[1] + 0

    handle = module.register_forward_hook(keep)
    try:
        logits = lm.model(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
    finally:
        handle.remove()
    at = torch.arange(len(target)) + len(prompt) - 1
    loss = -logits.log_softmax(-1)[at, torch.tensor(target)].sum()
    (slope,) = torch.autograd.grad(loss, kept[1])
    width = len(prompt) + len(target)
    return kept[0].reshape(width, -1)[at], slope.reshape(width, -1)[at]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "falcon", "gpt_neo", "bloom"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_read_where_they_are_predicted(family: str, side: str) -> None:
    """In batches of rows of unlike length, whatever the tokenizer's side, answers of one token and of many."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    lm = LM.wrap(tiny_model(family, dtype=F64), tokenizer)
    edits = [
        *tiny_edits(5),
        Edit(prompt="The", target=one_token(lm)),
        Edit(prompt="The tower is", target=one_token(lm)),
    ]
    path = paths_of(lm)[0]
    found = read_answers(lm, edits, [path], batch_tokens=60)
    lengths = torch.bincount(found.owner)
    assert lengths.min() == 1 < lengths.max()
    for i, edit in enumerate(edits):
        inputs, gradients = one_by_one(lm, edit, path)
        near(found.inputs[path][found.owner == i], inputs, 1e-5)
        near(found.gradients[path][found.owner == i], gradients, 1e-5)


def test_packing_changes_nothing(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(8)
    paths = paths_of(lm)
    alone, together = (read_answers(lm, edits, paths, batch_tokens=n) for n in (1, 4096))
    for path in paths:
        near(alone.inputs[path], together.inputs[path], 1e-5)
        near(alone.gradients[path], together.gradients[path], 1e-5)


def test_losses_are_means_over_a_micro_batchs_tokens(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(5)
    path = lm.arch.mlp_out[1]
    summed = read_answers(lm, edits, [path])
    averaged = read_answers(lm, edits, [path], micro_batch=2)
    counts = torch.bincount(summed.owner)
    sizes = torch.tensor([counts[:2].sum(), counts[:2].sum(), counts[2:4].sum(), counts[2:4].sum(), counts[4]])
    near(averaged.gradients[path], summed.gradients[path] / sizes[summed.owner][:, None], 1e-5)


def test_nothing_below_the_lowest_projection_runs_backwards(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    needed: dict[int, bool] = {}
    handles = [
        lm.block(layer).register_forward_hook(
            lambda _m, _a, output, layer=layer: needed.update({layer: hooks.hidden(output).requires_grad})
        )
        for layer in range(lm.arch.n_layers)
    ]
    try:
        read_answers(lm, tiny_edits(2), [lm.arch.mlp_out[2]])
    finally:
        for handle in handles:
            handle.remove()
    assert needed == {0: False, 1: False, 2: True, 3: True}
    assert all(weight.grad is None for weight in lm.model.parameters())


def test_an_answer_without_a_token_is_refused(tiny_lm: TinyLM) -> None:
    with pytest.raises(RequestError, match="target"):
        read_answers(tiny_lm("llama"), [Edit(prompt="The", target="")], [tiny_lm("llama").arch.mlp_out[1]])
