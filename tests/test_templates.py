"""Templates are written by the model, the same for the same seed, and fit to stand before a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from retcon import forward, patch, templates, tokens
from retcon.lm import LM
from retcon.patch import LowRank, Patch, Step, describe_base
from retcon.testing import tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]


def new(family: str = "llama", seed: int = 0) -> LM:
    return LM.wrap(tiny_model(family, seed=seed), tiny_tokenizer("fast"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_each_word_is_continued_to_a_sentence(tiny_lm: Tiny, family: str) -> None:
    lm = tiny_lm(family)
    found = templates.written(lm)
    assert len(found) == len(templates.SEARCH_WORDS)
    for word, text in zip(templates.SEARCH_WORDS, found, strict=True):
        assert text.startswith(word)
        assert text.endswith(". ")
        assert len(text) > len(word) + 2
        assert not set("{}\n\r\t") & set(text)
        assert "  " not in text


def test_the_same_model_and_seed_write_the_same() -> None:
    """And nothing of the global random state is used or changed."""
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = templates.written(new())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert templates.written(new()) == first


def test_another_seed_or_model_writes_something_else() -> None:
    lm = new()
    assert len({templates.written(lm), templates.written(lm, seed=1), templates.written(new(seed=1))}) == 3


def test_one_word_twice_is_continued_in_two_ways() -> None:
    first, second = templates.written(new(), ("The", "The"), top_k=None)
    assert first != second


def test_lengths_count_the_word() -> None:
    lm = new()
    (text,) = templates.written(lm, ("The",), length=6, top_k=None)
    assert len(tokens.encode(lm, text)) <= 2 * 6 + 2  # what is sampled is decoded and need not come back as it was
    assert len(templates.written(lm, ("The",), length=30)[0]) > len(text)


def test_how_they_are_sampled_is_up_to_the_caller() -> None:
    """A cold draw from a small nucleus is the greedy continuation; a warm one is not, and both are kept apart."""
    lm = new()
    cold = templates.written(lm, temperature=0.01, top_k=None)
    nucleus = templates.written(lm, top_k=None, top_p=1e-6)
    greedy = templates.written(lm, top_k=1)
    assert cold == nucleus == greedy
    assert len({greedy, templates.written(lm, temperature=0.5, top_k=100, top_p=0.9), templates.written(lm)}) == 3


def test_they_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = new()
    first = templates.written(lm)
    monkeypatch.setattr(forward, "sample", None)
    assert templates.written(lm) == first


def test_braces_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = new()
    said = [tokens.encode(lm, " {is}\n\n an {} odd\tthing ")]
    monkeypatch.setattr(forward, "sample", lambda *_, **__: said)
    assert templates.written(lm, ("This",)) == ("This is an odd thing. ",)


def test_what_is_written_under_a_patch_is_kept_for_that_patch_alone() -> None:
    lm = new()
    generator = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(64, 4, generator=generator), torch.randn(112, 4, generator=generator))
    path = lm.arch.mlp_out[1]
    made = Patch({path: change}, describe_base(lm.model, [path]), (Step(method="hand"),))
    with made.on(lm.model):
        patched = templates.written(lm)
    plain = templates.written(lm)
    assert plain != patched
    assert plain == templates.written(new())
    with made.on(lm.model):
        assert templates.written(lm) == patched


def test_a_patched_model_writes_its_own() -> None:
    """What was kept for the plain model is not handed out for another."""
    lm = new()
    first = templates.written(lm)
    generator = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(64, 4, generator=generator), torch.randn(112, 4, generator=generator))
    with patch.hooked(lm.projection(1), change):
        other = LM.wrap(lm.model, lm.tokenizer)
        assert templates.written(other) != first
