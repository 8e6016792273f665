"""Texts before the prompt."""

import pytest

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.evaluate.answers import Answers
from retcon.evaluate.prefixes import PASSAGES, SEED_WORDS, checked, joined, passages, written
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def test_seed_words_are_ten_and_none_of_the_searchs() -> None:
    assert len(set(SEED_WORDS)) == 10
    assert not set(SEED_WORDS) & {"The", "Therefore", "Because", "I", "You"}


def test_the_same_seed_writes_the_same_ten_texts_and_another_seed_others(lm: LM) -> None:
    first = written(lm, Answers(lm), 0)
    assert first == written(lm, Answers(lm), 0)
    assert len(first) == 10
    assert first != written(lm, Answers(lm), 1)


def test_each_text_begins_with_its_seed_word_on_one_line(lm: LM) -> None:
    for word, text in zip(SEED_WORDS, written(lm, Answers(lm), 0), strict=True):
        assert text.startswith(word)
        assert text == " ".join(text.split())
        assert "\ufffd" not in text
        assert len(tokens.encode(lm, word)) <= len(tokens.encode(lm, text))


def test_a_model_with_nothing_to_say_leaves_the_word(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "sample", lambda _lm, prompts, **_: [[] for _ in prompts])
    assert written(lm, Answers(lm), 0) == list(SEED_WORDS)


def test_a_prefix_is_a_sentence_of_its_own() -> None:
    assert joined("It rained", "Lima is in") == "It rained. Lima is in"
    assert joined("Did it rain?", "Lima is in") == "Did it rain? Lima is in"


def test_empty_prefixes_of_the_user_are_left_out() -> None:
    assert checked([" It rained ", "", " "]) == ["It rained"]


TEXT = "The tower is located in the city of Paris, and the river is in the north of the country. " * 30


def test_passages_are_seeded_and_of_their_length(lm: LM) -> None:
    found = passages(lm, TEXT, [0, 5, 40], 0)
    assert list(found) == [0, 5, 40]
    assert [len(texts) for texts in found.values()] == [0, PASSAGES, PASSAGES]
    for length in (5, 40):
        for text in found[length]:
            assert text == " ".join(text.split())
            assert abs(len(tokens.encode(lm, text)) - length) <= 3
    assert found == passages(lm, TEXT, [0, 5, 40], 0) != passages(lm, TEXT, [0, 5, 40], 1)
    assert passages(lm, TEXT, [40], 0)[40] == found[40]  # whatever the other lengths
    assert passages(lm, TEXT, [], 0) == {}


def test_a_long_text_leaves_its_beginning_to_others(lm: LM) -> None:
    words = " ".join(f"{n}," for n in range(1000))
    late = passages(lm, words, [20], 0, past=len(tokens.encode(lm, words)) // 2)[20]
    assert min(int(text.strip(" ,").split(",")[1]) for text in late) > 300
    short = passages(lm, "1, 2, 3, 5. " * 20, [20], 0, past=10_000)[20]
    assert len(short) == PASSAGES


def test_passages_that_cannot_be_cut_are_refused(lm: LM) -> None:
    with pytest.raises(RetconError, match="too few for passages of 500"):
        passages(lm, "A short text.", [5, 500], 0)
    with pytest.raises(RetconError, match="from 0 on"):
        passages(lm, TEXT, [-1], 0)
