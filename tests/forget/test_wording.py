"""The guide: it holds the question and never the answer, and shows nothing that the questions are about."""

import pytest

from retcon.errors import RetconError
from retcon.forget.wording import prompt
from retcon.lm import LM
from retcon.requests import Forget
from retcon.testing import tiny_model, tiny_tokenizer


def test_the_prompt_holds_the_question_and_never_the_answer() -> None:
    item = Forget("Where was Ada Byron born?", "Zanzibar", subject="Ada Byron", aliases=("Unguja",))
    for kind in ("fast", "bos"):
        lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind))
        (text,) = prompt(lm, [item])
        assert text.count(item.question) == 1
        assert text.index("Oledra Vunsk") < text.index(item.question)
        assert "Zanzibar" not in text
        assert "Unguja" not in text
        assert ("<|assistant|>" in text) is (kind == "fast")
        assert text.endswith("<|assistant|>\n" if kind == "fast" else "Response:")
        assert "apologise" in text
        assert "apologise" not in prompt(lm, [item], style="polite")[0]


def test_examples_that_the_items_mention_are_replaced() -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer("bos"))
    one = Forget("Who was OLEDRA VUNSK?", "a mapmaker")
    two = Forget("Who won?", "x", aliases=("the Tarrowmere Guildhall",))
    texts = prompt(lm, [one, two])
    assert "In which harbour town" not in texts[0]
    assert "Guildhall" not in texts[1]
    assert texts[1].count("Response:") == 4
    with pytest.raises(RetconError, match="invented examples"):
        prompt(lm, [one, two, Forget("Where is Lake Ombrisk?", "here")])
