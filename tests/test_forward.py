"""Batched, cached, gathered: every figure is that of one plain row at a time, on every family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from retcon import forward, hooks, progress
from retcon.errors import RequestError
from retcon.forward import Scored
from retcon.lm import LM
from retcon.testing import FAMILIES, tiny_model, tiny_tokenizer

Items = list[tuple[list[int], list[list[int]]]]


@cache
def lm(family: str) -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer("fast"))


def items(count: int = 9, seed: int = 0) -> Items:
    """Prompts of 1 to 21 tokens (windows are 8) with up to four continuations of 1 to 11 tokens."""
    draw = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 500) for _ in range(draw.randint(least, most))]

    return [(ids(1, 21), [ids(1, draw.choice((1, 3, 11))) for _ in range(draw.randint(1, 4))]) for _ in range(count)]


@torch.no_grad()
def plain_score(model: Any, prompt: list[int], continuation: list[int]) -> Scored:
    """One row through the whole model, logits everywhere."""
    logits = model(torch.tensor([prompt + continuation])).logits[0].float()
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    values = [float(logprobs[t, token]) for t, token in enumerate(continuation)]
    return Scored(values, [int(logprobs[t].argmax()) == token for t, token in enumerate(continuation)])


@torch.no_grad()
def plain_greedy(model: Any, prompt: list[int], new: int, end: int | None = 2) -> list[int]:
    """The argmax of the whole row, token after token, without a cache."""
    ids = list(prompt)
    for _ in range(new):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]


def agree(found: Sequence[Sequence[Scored]], wanted: Sequence[Sequence[Scored]], tolerance: float = 1e-4) -> None:
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for ours, theirs in zip(chain(*found), chain(*wanted), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=tolerance)
        assert ours.hits == theirs.hits


@pytest.mark.parametrize("batch_tokens", [4096, 40, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_score_is_that_of_single_plain_rows(family: str, batch_tokens: int) -> None:
    it, asked = lm(family), items()
    for i, (prompt, continuations) in enumerate(asked):  # let some tokens be the argmax
        if i % 2:
            continuations.append(plain_greedy(it.model, prompt, 4, end=None))
    found = forward.score(it, asked, batch_tokens=batch_tokens)
    wanted = [[plain_score(it.model, prompt, c) for c in continuations] for prompt, continuations in asked]
    assert any(all(one.hits) for row in wanted for one in row)
    assert any(not any(one.hits) for row in wanted for one in row)
    agree(found, wanted)


def alike(starts: Sequence[int] = (9, 20), each: int = 17) -> Items:
    """Prompts that begin with one of some common texts, in an order of their own, and a few that begin otherwise."""
    draw = random.Random(1)

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, 500) for _ in range(n)]

    heads = [ids(n) for n in starts]
    asked: Items = [(head + ids(draw.randint(1, 9)), [ids(draw.randint(1, 4))]) for head in heads for _ in range(each)]
    asked += [(prompt, [*texts, ids(1)]) for prompt, texts in asked[:3]] + items(5)
    draw.shuffle(asked)
    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_begin_alike_score_as_single_plain_rows(family: str) -> None:
    it, asked = lm(family), alike()
    wanted = [[plain_score(it.model, prompt, c) for c in continuations] for prompt, continuations in asked]
    agree(forward.score(it, asked, batch_tokens=64), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_begin_alike_are_continued_as_single_plain_rows(family: str) -> None:
    it, prompts = lm(family), [prompt for prompt, _ in alike()]
    assert forward.starts.shared_starts(it, prompts, {i: len(row) - 1 for i, row in enumerate(prompts)})
    most = [1 + place % 3 for place in range(len(prompts))]
    found = forward.greedy(it, prompts, max_new_tokens=most, stop_at_eos=False, batch_tokens=64)
    assert found == [plain_greedy(it.model, row, n, end=None) for row, n in zip(prompts, most, strict=True)]


@pytest.mark.parametrize("sliding", ["mistral", "gemma2"])
def test_rows_that_begin_alike_slide_as_single_plain_rows(sliding: str) -> None:
    """Their keys are moved so that no padding stands within a window."""
    it = LM.wrap(tiny_model(sliding), tiny_tokenizer("fast"))
    start = list(range(5, 12 + int(it.model.config.sliding_window)))
    prompts = [[*start, *range(40, 40 + n)] for n in (1, 9, 4, 17, 2)] * 9
    found = forward.greedy(it, prompts, max_new_tokens=6, stop_at_eos=False)
    assert found[:5] == [plain_greedy(it.model, row, 6, end=None) for row in prompts[:5]]


@pytest.mark.parametrize("work", ["score", "greedy"])
def test_what_rows_begin_with_is_run_once(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it, asked = lm("llama"), alike()
    assert forward.cache_holds(it)
    run: list[int] = []

    def counted(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        run.append(int(kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :].sum()))

    def tokens_run() -> int:
        run.clear()
        with it.model.register_forward_pre_hook(counted, with_kwargs=True):
            if work == "score":
                forward.score(it, asked)
            else:
                forward.greedy(it, [prompt for prompt, _ in asked], max_new_tokens=1)
        return sum(run)

    shared = tokens_run()
    monkeypatch.setattr("retcon.forward.starts._SAVED_TOKENS", 10**9)
    assert tokens_run() - shared == (17 + 3 - 1) * 9 + 16 * 20  # three of the first text's rows are there twice


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "cohere"])
def test_score_without_caches(family: str) -> None:
    it = lm(family)
    whole = forward.score(it, items())
    probed = it.notes["cache_holds"]
    it.notes["cache_holds"] = False
    try:
        agree(forward.score(it, items()), whole)
    finally:
        it.notes["cache_holds"] = probed


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_hold(family: str) -> None:
    assert forward.cache_holds(LM.wrap(tiny_model(family), tiny_tokenizer("fast")))


def test_a_model_that_ignores_its_cache_is_found_out() -> None:
    it = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))

    def forget(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, kwargs | {"past_key_values": None}

    decoder: Any = it.model.model
    with decoder.register_forward_pre_hook(forget, with_kwargs=True):
        assert not forward.cache_holds(it)
        wanted = [[plain_score(it.model, prompt, c) for c in continuations] for prompt, continuations in items()]
        agree(forward.score(it, items()), wanted)


def test_score_odd_requests() -> None:
    it = lm("llama")
    assert forward.score(it, []) == []
    assert forward.score(it, [([5, 6], [])]) == [[]]
    same = forward.score(it, [([5, 6], [[7, 8], [7, 8], [7]]), ([9], []), ([5, 6], [[7, 8]])])
    assert [len(row) for row in same] == [3, 0, 1]
    agree([[same[0][1], same[0][2]]], [[same[0][0], Scored(same[0][0].logprobs[:1], same[0][0].hits[:1])]])
    agree([same[2]], [[same[0][0]]])


@pytest.mark.parametrize("asked", [[([], [[5]])], [([5], [[6]]), ([7], [[8], []])]])
def test_empty_rows_are_refused(asked: Items) -> None:
    with pytest.raises(RequestError, match=r"a (prompt|continuation) has no token; write at least one character"):
        forward.score(lm("llama"), asked)


def test_empty_prompts_are_not_continued() -> None:
    with pytest.raises(RequestError, match="a prompt has no token"):
        forward.greedy(lm("llama"), [[5], []], max_new_tokens=1)


def test_score_does_not_change_what_it_is_given() -> None:
    asked, same = items(), items()
    forward.score(lm("gptj"), asked)
    assert asked == same


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_score_sees_a_changed_model(family: str) -> None:
    """Nothing of an earlier call is kept: a hook put on in between shows, its removal too."""
    it = lm(family)
    before = forward.score(it, items())
    with changed(it.projection(1)):
        wanted = [[plain_score(it.model, prompt, c) for c in continuations] for prompt, continuations in items()]
        agree(forward.score(it, items()), wanted)
        assert forward.score(it, items()) != before
    assert forward.score(it, items()) == before


@contextmanager
def changed(module: nn.Module) -> Iterator[None]:
    with module.register_forward_hook(lambda _m, _a, y: y + 0.5 * y.roll(1, -1)):
        yield


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_score_in_half_precision_is_close(family: str) -> None:
    it = LM.wrap(tiny_model(family, dtype=torch.bfloat16), tiny_tokenizer("fast"))
    wanted = [[plain_score(it.model, prompt, c) for c in continuations] for prompt, continuations in items()]
    for ours, theirs in zip(chain(*forward.score(it, items())), chain(*wanted), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_one_at_a_time(family: str) -> None:
    it = lm(family)
    model: Any = it.model
    prompts = [prompt for prompt, _ in items(5)]
    found = forward.greedy(it, prompts, max_new_tokens=6)
    for prompt, ours in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        new = out[0, len(prompt) :].tolist()
        assert ours == (new[: new.index(2)] if 2 in new else new)
        assert ours == plain_greedy(it.model, prompt, 6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj"])
def test_greedy_stops_at_the_end_token_or_goes_on(family: str) -> None:
    """The end token is made likely for some prompts; rows of one batch then end at different lengths."""
    it = LM.wrap(tiny_model(family, tie=False), tiny_tokenizer("fast"))
    prompts = [prompt for prompt, _ in items(12)]
    free = forward.greedy(it, prompts, max_new_tokens=8, stop_at_eos=False)
    ends = free[0][3]
    it.model.generation_config.eos_token_id = [2, ends]
    assert forward.greedy(it, prompts, max_new_tokens=8, stop_at_eos=False) == free
    found = forward.greedy(it, prompts, max_new_tokens=8)
    assert found == [row[: row.index(ends)] if ends in row else row for row in free]
    assert len(found[0]) <= 3 < max(map(len, found))


def test_greedy_whatever_the_models_own_generation_config() -> None:
    """Checkpoints ship sampling temperatures and penalties; greedy is greedy."""
    it = LM.wrap(tiny_model("llama"), tiny_tokenizer("fast"))
    prompts = [prompt for prompt, _ in items(5)]
    plain = forward.greedy(it, prompts, max_new_tokens=5)
    own = it.model.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty, own.no_repeat_ngram_size = True, 9.0, 3, 2.0, 1
    own.suppress_tokens = [plain[0][0]]
    assert forward.greedy(it, prompts, max_new_tokens=5) == plain
    assert it.model.generation_config is own
    assert own.repetition_penalty == 2.0


@pytest.mark.parametrize("batch_tokens", [10, 60])
def test_batches_change_nothing(batch_tokens: int) -> None:
    it = lm("mistral")
    prompts = [prompt for prompt, _ in items(9)]
    assert forward.greedy(it, prompts, max_new_tokens=5, batch_tokens=batch_tokens) == forward.greedy(
        it, prompts, max_new_tokens=5
    )


def test_sample_is_seeded_and_local() -> None:
    it = lm("llama")
    prompts = [prompt for prompt, _ in items(6)]
    state = torch.get_rng_state()
    first = forward.sample(it, prompts, max_new_tokens=5, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert forward.sample(it, prompts, max_new_tokens=5, seed=1) == first
    assert forward.sample(it, prompts, max_new_tokens=5, seed=2) != first
    greedy = forward.greedy(it, prompts, max_new_tokens=5)
    assert first != greedy
    assert forward.sample(it, prompts, max_new_tokens=5, seed=1, top_k=1) == greedy
    assert forward.sample(it, prompts, max_new_tokens=5, seed=1, temperature=1e-4) == greedy


def test_sample_follows_the_models_distribution() -> None:
    it = lm("llama")
    prompt = [5, 9, 300]
    with torch.no_grad():
        wanted = it.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    found = [row[0] for row in forward.sample(it, [prompt] * 4000, max_new_tokens=1, seed=0, stop_at_eos=False)]
    share = torch.bincount(torch.tensor(found), minlength=512) / len(found)
    top = wanted.topk(5).indices
    assert (share[top] - wanted[top]).abs().max() < 4 * float((wanted.max() / 4000).sqrt())
    order = wanted.argsort(descending=True)
    rare = order[wanted[order].cumsum(0) > 0.9]
    assert share[rare].sum() == pytest.approx(float(wanted[rare].sum()), abs=0.02)  # no top-k or top-p of the library's


SEEDS = [11, 2**63 - 1, 13, 14, 15, 16]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_seed_a_row_draws_each_row_as_if_alone(family: str) -> None:
    it = lm(family)
    prompts = [prompt for prompt, _ in items(6)]
    shape: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "top_p": 0.95}
    state = torch.get_rng_state()
    together = forward.sample(it, prompts, seed=SEEDS, **shape)
    assert torch.equal(state, torch.get_rng_state())
    assert forward.sample(it, prompts, seed=SEEDS, **shape) == together
    assert [forward.sample(it, [p], seed=[s], **shape)[0] for p, s in zip(prompts, SEEDS, strict=True)] == together
    assert forward.sample(it, prompts[::-1], seed=SEEDS[::-1], batch_tokens=30, **shape) == together[::-1]
    other = forward.sample(it, prompts, seed=[*SEEDS[:5], 17], **shape)
    assert other[:5] == together[:5]
    assert other[5] != together[5]


def test_a_seed_a_row_keeps_the_shape_of_the_distribution() -> None:
    it = lm("llama")
    prompts = [prompt for prompt, _ in items(6)]
    greedy = forward.greedy(it, prompts, max_new_tokens=5)
    assert forward.sample(it, prompts, max_new_tokens=5, seed=SEEDS, top_k=1) == greedy
    assert forward.sample(it, prompts, max_new_tokens=5, seed=SEEDS, top_p=1e-6) == greedy
    assert forward.sample(it, prompts, max_new_tokens=5, seed=SEEDS, temperature=1e-4) == greedy
    prompt = [5, 9, 300]
    with torch.no_grad():
        logits = it.model(torch.tensor([prompt])).logits[0, -1]
    drawn = forward.sample(it, [prompt] * 4000, max_new_tokens=1, seed=range(4000), temperature=0.7, stop_at_eos=False)
    share = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=512) / len(drawn)
    wanted = (logits / 0.7).softmax(-1)
    top = wanted.topk(5).indices
    assert (share[top] - wanted[top]).abs().max() < 4 * float((wanted.max() / 4000).sqrt())


def test_seeds_are_one_or_one_a_row() -> None:
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        forward.sample(lm("llama"), [[5, 6]], max_new_tokens=2, seed=[1, 2])


def test_progress_counts_all_tokens() -> None:
    seen: list[float] = []

    @contextmanager
    def listener(_label: str, total: float) -> Iterator[Any]:
        seen.append(-total)
        yield seen.append

    with progress.listen(listener):
        forward.score(lm("llama"), items(), batch_tokens=50)
        forward.greedy(lm("llama"), [[5], [6, 7]], max_new_tokens=2)
    assert sum(seen) == 0
    assert min(seen) < 0


def traces(model: Any) -> list[Any]:
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in model.modules()
    ]
    return [
        modules,
        [p.requires_grad for p in model.parameters()],
        model.generation_config.to_dict(),
        model.config.to_dict(),
    ]


@pytest.mark.parametrize("family", ["llama", "gptj", "mpt"])
def test_the_model_is_left_as_it_was_also_after_an_error(family: str) -> None:
    it = LM.wrap(tiny_model(family), tiny_tokenizer("fast"))
    it.model.train()
    next(it.model.parameters()).requires_grad_(False)
    before, own = traces(it.model), it.model.generation_config
    weights = {name: weight.clone() for name, weight in it.model.state_dict().items()}
    forward.score(it, items(3))
    forward.greedy(it, [[5, 6]], max_new_tokens=2)
    forward.sample(it, [[5, 6]], max_new_tokens=2, seed=0)

    def fail(*_: Any) -> None:
        raise ValueError("on purpose")

    with it.block(2).register_forward_hook(fail):
        for run in (
            lambda: forward.score(it, items(3)),
            lambda: forward.greedy(it, [[5, 6]], max_new_tokens=2),
            lambda: forward.sample(it, [[5, 6]], max_new_tokens=2, seed=0),
        ):
            with pytest.raises(ValueError, match="on purpose"):
                run()
    assert traces(it.model) == before
    assert it.model.generation_config is own
    assert all(torch.equal(weight, weights[name]) for name, weight in it.model.state_dict().items())


def test_align_puts_the_split_in_one_column() -> None:
    batch = forward.align([[5, 6, 7], [8], [9, 10]], [2, 0, 2], torch.device("cpu"))
    assert batch.ids.tolist() == [[5, 6, 7], [0, 0, 8], [9, 10, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1], [1, 1, 0]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 1]]
    assert (batch.split, batch.width, len(batch)) == (2, 3, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_entry_holds(family: str) -> None:
    assert forward.entry_holds(LM.wrap(tiny_model(family), tiny_tokenizer("fast")))


def test_a_single_block_cannot_be_entered_later() -> None:
    assert not forward.entry_holds(LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer("fast")))


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_entering_at_a_block_is_the_rest_of_the_forward(family: str, first: int) -> None:
    """With padding on both sides, against cached prefixes, and with the states changed."""
    it = lm(family)
    rows, splits = [[5, 9, 300, 6, 8, 77, 12, 31, 40, 3, 44, 45], [6, 7, 10, 90]], [9, 3]
    whole = forward.align(rows, splits, it.device)
    split, added = whole.split, torch.linspace(-1, 1, 64)
    last = it.arch.blocks[first - 1]
    with it.inference():
        module = it.module(last)
        plain = forward.call(it, whole.ids, whole.mask, whole.positions).logits
        with hooks.rewritten(module, lambda h: torch.cat([h[:, :split], h[:, split:] + added], 1)):
            changed_ = forward.call(it, whole.ids, whole.mask, whole.positions).logits
        cache = DynamicCache()
        forward.call(it, whole.ids[:, :split], whole.mask[:, :split], whole.positions[:, :split], cache)
        layers: Any = cache.layers
        past = [(layer.keys, layer.values) for layer in layers]
        right = whole.ids[:, split:], whole.mask, whole.positions[:, split:]
        with hooks.record({last: module}, "output") as seen:
            forward.call(it, *right, forward.filled(past))
        for states, wanted in ((seen[last], plain), (seen[last] + added, changed_)):
            with forward.entered_at(it, first, states):
                found = forward.call(it, *right, forward.filled(past)).logits
            real = whole.mask[:, split:].bool()
            torch.testing.assert_close(found[real], wanted[:, split:][real], atol=1e-4, rtol=1e-4)
    assert not any("forward" in m.__dict__ for m in it.model.modules())


def test_entering_skips_what_lies_below_and_lets_gradients_through() -> None:
    it = lm("falcon")
    batch = forward.align([[5, 6, 7]], [0], it.device)
    states = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    paths = {str(i): it.module(path) for i, path in enumerate(it.arch.mlp_out)}
    with hooks.record(paths) as seen, forward.entered_at(it, 2, states):
        forward.call(it, batch.ids, batch.mask, batch.positions).logits.sum().backward()
    assert list(seen) == ["2", "3"]
    assert states.grad is not None
    assert states.grad.abs().min() > 0
    it.model.zero_grad(set_to_none=True)


def test_a_filled_cache_copies_nothing_and_is_not_written() -> None:
    it = lm("llama")
    past = [(torch.randn(2, 2, 5, 16), torch.randn(2, 2, 5, 16)) for _ in range(4)]
    cache = forward.filled(past)
    layers: Any = cache.layers
    assert all(
        layer.keys is keys and layer.values is values for layer, (keys, values) in zip(layers, past, strict=True)
    )
    assert cache.get_seq_length() == 5
    kept = [(keys.clone(), values.clone()) for keys, values in past]
    with it.inference():
        ids = torch.tensor([[5, 6], [7, 8]])
        forward.call(it, ids, torch.ones(2, 7, dtype=torch.long), torch.tensor([[5, 6], [5, 6]]), cache)
    assert cache.get_seq_length() == 7
    assert all(
        torch.equal(a, b) for pair, same in zip(past, kept, strict=True) for a, b in zip(pair, same, strict=True)
    )


def test_batches_keep_to_the_limit() -> None:
    lengths = [3, 3, 5, 9, 40]
    cut = list(forward.batches(range(5), lengths, 18))
    assert cut == [[0, 1, 2], [3], [4]]
