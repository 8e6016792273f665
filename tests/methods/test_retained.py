"""Texts to retain go on as the unedited model does."""

import pytest

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.retained import answered
from retcon.testing import tiny_model, tiny_tokenizer

KEPT = ("The river is in the north of the country.", "Chess is a sport too.")


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def test_the_answer_is_the_models_own(lm: LM) -> None:
    prompts = [tokens.encode(lm, kept) for kept in KEPT]
    found = answered(lm, KEPT, 6)
    assert [one.prompt for one in found] == prompts
    assert [one.answer for one in found] == forward.greedy(lm, prompts, max_new_tokens=6)
    assert all(one.ids == one.prompt + one.answer and one.answer for one in found)
    assert [one.ended for one in found] == [len(one.answer) < 6 for one in found]


def test_no_answer_and_no_text(lm: LM) -> None:
    assert [one.ids for one in answered(lm, KEPT, 0)] == [tokens.encode(lm, kept) for kept in KEPT]
    assert answered(lm, (), 6) == []
    with pytest.raises(RetconError, match=r"-1 tokens .* give 0 or more"):
        answered(lm, KEPT, -1)
