"""Questions go through the chat template where there is one, unless something else is wanted."""

import pytest

from retcon.errors import RetconError
from retcon.forget.asking import asking
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


def test_a_model_is_asked_in_chat_where_it_can_be() -> None:
    chat = LM.wrap(tiny_model("llama"), tiny_tokenizer())
    bare = LM.wrap(tiny_model("llama"), tiny_tokenizer("bos"))
    assert [asking(chat, way).chat for way in (None, True, False)] == [True, True, False]
    assert [asking(bare, way).chat for way in (None, False)] == [False, False]
    with pytest.raises(RetconError, match="no chat template"):
        asking(bare, True)
    assert chat.chat is False
