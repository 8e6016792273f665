"""What the model writes is kept sealed: with the prompt it is found again, without it nothing is told."""

from pathlib import Path

import pytest

from retcon import forward, tokens
from retcon.forget.drafts import Draft, drafts, kept_drafts
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer())


def test_drafts_are_those_of_the_model_alone_or_together(lm: LM) -> None:
    one, other = (tuple(tokens.encode(lm, text)) for text in ("Who owns the mill?", "Where is it?"))
    wanted = [Draft(one, None), Draft(other, 5), Draft(one, 5), Draft(one, None)]
    found = drafts(lm, wanted, max_new_tokens=6)
    assert found[0] == found[3] == tokens.decode(lm, forward.greedy(lm, [list(one)], max_new_tokens=6)[0])
    assert drafts(lm, wanted[1:2], max_new_tokens=6) == found[1:2]
    assert drafts(lm, [Draft(one, 6)], max_new_tokens=6) != found[2:3]


def test_nothing_that_was_written_can_be_read_without_the_prompt(
    lm: LM, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tokens.target_ids(lm, "a", "It was Oberwinterthal, I believe.")
    monkeypatch.setattr(forward, "greedy", lambda _lm, prompts, **_: [secret for _ in prompts])
    prompt = tuple(tokens.encode(lm, "Where was Zelda Quimby born?"))
    (text,) = drafts(lm, [Draft(prompt, None)], max_new_tokens=8, store=kept_drafts(lm))
    assert "Oberwinterthal" in text
    monkeypatch.setattr(forward, "greedy", lambda *_, **__: pytest.fail("asked again"))
    assert drafts(lm, [Draft(prompt, None)], max_new_tokens=8, store=kept_drafts(lm)) == [text]
    files = [path for path in own_cache.rglob("*") if path.is_file()]
    assert len(files) == 2  # the salt and the drafts
    assert not any(word in path.read_bytes() for path in files for word in (b"Oberwinterthal", b"Quimby"))
