"""Answers drawn at random: by seed and place, and near temperature zero the likeliest."""

import pytest

from retcon import forward, tokens
from retcon.forget.samples import sampled
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer())


def test_each_answer_has_a_seed_of_its_own(lm: LM) -> None:
    prompts = [tokens.encode(lm, text) for text in ("Who owns the mill?", "Where is it?")]
    found = sampled(lm, prompts, samples=4, max_new_tokens=6)
    assert [len(texts) for texts in found] == [4, 4]
    assert all(len(set(texts)) > 1 for texts in found)
    assert sampled(lm, prompts[:1], samples=4, max_new_tokens=6) == found[:1]
    assert sampled(lm, prompts, samples=2, max_new_tokens=6) == [texts[:2] for texts in found]
    assert sampled(lm, prompts, samples=4, max_new_tokens=6, seed=1) != found
    assert sampled(lm, [], samples=4, max_new_tokens=6) == []


def test_near_temperature_zero_they_are_the_greedy_answer(lm: LM) -> None:
    ids = tokens.encode(lm, "Who owns the mill?")
    greedy = tokens.decode(lm, forward.greedy(lm, [ids], max_new_tokens=6)[0])
    assert sampled(lm, [ids], samples=2, max_new_tokens=6, temperature=1e-4) == [[greedy, greedy]]
