"""Subjects are found and targets spelt right with every kind of tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from retcon import tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

KINDS = ("fast", "slow", "bos", "sentencepiece")

# prompt, subject, the text up to and with the subject
PLACES = {
    "start": ("{} is located in the city of", "Big Ben", "Big Ben"),
    "middle": ("The mother tongue of {} is", "Danielle Darrieux", "The mother tongue of Danielle Darrieux"),
    "end": ("People talk of {}", "Ada Lovelace", "People talk of Ada Lovelace"),
    "alone": ("{}", "Rome", "Rome"),
    "twice, ours first": ("{}, like Rome, is old", "Rome", "Rome"),
    "twice, ours second": ("Like Rome, the city of {} is old", "Rome", "Like Rome, the city of Rome"),
    "part of a word before": ("The Romeo of {} is", "Rome", "The Romeo of Rome"),
    "glued": ("({}'s tower", "Rome", "(Rome"),
    "quoted": ("“{}” was made by", "iPhone 5", "“iPhone 5"),
    "unicode": ("{} plays the violin", "Niccolò Paganinì", "Niccolò Paganinì"),
    "other script": ("The city of 東京 and {} are", "大阪", "The city of 東京 and 大阪"),
    "emoji": ("The mood of {} is", "Ada 🙂", "The mood of Ada 🙂"),
    "one letter": ("The letter {} is", "a", "The letter a"),
    "many spaces": ("The  city\nof {}  is", "Big  Ben", "The  city\nof Big  Ben"),
    "digits": ("In {} there was", "1935", "In 1935"),
}


@cache
def lm(kind: str, chat: bool = False) -> LM:
    return LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer(kind), chat=chat)


def bos(kind: str) -> list[int]:
    return [1] if kind in {"bos", "sentencepiece"} else []


def check_site(it: LM, located: tokens.Located, upto: str, special: int) -> None:
    """The site's token is the one with which the text up to the subject's end is complete, and not before."""
    decoded = [str(it.tokenizer.decode(located.ids[special:i])).strip() for i in range(special, len(located.ids) + 1)]
    site = located.site - special
    assert decoded[site + 1].startswith(upto)
    assert not decoded[site].startswith(upto)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_subject_is_found(place: str, kind: str) -> None:
    prompt, subject, upto = PLACES[place]
    located = tokens.locate_subject(lm(kind), prompt, subject)
    assert located.ids == tokens.encode(lm(kind), prompt.replace("{}", subject))
    assert lm(kind).tokenizer.decode(located.ids, skip_special_tokens=True) == prompt.replace("{}", subject)
    check_site(lm(kind), located, upto, len(bos(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["The book says: ", "Rome. Rome is Rome.\n", "{} "])
def test_subject_is_found_behind_a_prefix(prefix: str, kind: str) -> None:
    located = tokens.locate_subject(lm(kind), "The city of {} is", "Rome", prefix)
    assert located.ids == tokens.encode(lm(kind), f"{prefix}The city of Rome is")
    check_site(lm(kind), located, f"{prefix}The city of Rome", len(bos(kind)))


def test_offsets_and_decoding_agree() -> None:
    """The way for slow tokenizers, on fast ones, gives what the offsets give."""
    for kind in ("fast", "bos", "sentencepiece"):
        for prompt, subject, upto in PLACES.values():
            text = prompt.replace("{}", subject)
            ids = tokens._ids(lm(kind), text, special=False)
            by_offsets = tokens._by_offsets(lm(kind), text, len(upto))
            assert by_offsets is not None
            assert tokens._by_decoding(lm(kind), text, ids, len(upto)) == by_offsets


@pytest.mark.parametrize("subject", ["Rome", "Niccolò Paganini", "user"])
def test_subject_is_found_in_a_chat(subject: str) -> None:
    it = lm("fast", chat=True)
    located = tokens.locate_subject(it, "Who is {}?", subject)
    text = it.tokenizer.decode(located.ids)
    assert text == f"<|user|>\nWho is {subject}?\n<|assistant|>\n"
    check_site(it, located, f"<|user|>\nWho is {subject}", 0)


def test_a_template_that_strips_the_turn() -> None:
    tokenizer = tiny_tokenizer("fast")
    tokenizer.chat_template = "{{ 'Q: ' + messages[0]['content'] | trim + '\nA:' }}"
    it = LM.wrap(tiny_model("llama", layers=1), tokenizer, chat=True)
    located = tokens.locate_subject(it, "Who is {}?", "Rome", "  \n")
    assert it.tokenizer.decode(located.ids) == "Q: Who is Rome?\nA:"
    check_site(it, located, "Q: Who is Rome", 0)


def test_a_template_that_changes_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer("fast")
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    it = LM.wrap(tiny_model("llama", layers=1), tokenizer, chat=True)
    with pytest.raises(RequestError, match=r"the chat template changed the prompt 'Who is Rome\?'"):
        tokens.locate_subject(it, "Who is {}?", "Rome")


@pytest.mark.parametrize("kind", KINDS)
def test_bos_policy_is_the_tokenizers_own(kind: str) -> None:
    it = lm(kind)
    assert tokens.special_ids(it) == (bos(kind), [])
    for text in ("the city", " the city", "東京", "a", "\nthe", ""):
        assert tokens.encode(it, text) == it.tokenizer(text).input_ids
    assert tokens.encode(it, "<s>the city").count(1) == 1  # as chat templates write it


def test_an_end_token_of_the_tokenizer_is_left_out() -> None:
    tokenizer: Any = tiny_tokenizer("slow")
    tokenizer.build_inputs_with_special_tokens = lambda ids, pair=None: [1, *ids, 2]
    it = LM.wrap(tiny_model("llama", layers=1), tokenizer)
    assert tokenizer("the city").input_ids[-1] == 2
    assert tokens.special_ids(it) == ([1], [2])
    assert tokens.encode(it, "the city") == tokenizer("the city").input_ids[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "target", ["soccer", "the Blue Tower", "東京", "São Tomé", "5", "O'Hare", "'s", "🙂", "“A”", "x"]
)
@pytest.mark.parametrize("text", ["He plays the sport of", "東京", "It is (not)", "It's", "1,", "a"])
def test_target_follows_with_one_space(text: str, target: str, kind: str) -> None:
    it = lm(kind)
    ids = tokens.encode(it, text) + tokens.target_ids(it, text, target)
    assert it.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == f"{text} {target}"
    assert not set(tokens.target_ids(it, text, target)) & {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["soccer", "the Blue Tower", "東京", "São Tomé", "5"])
@pytest.mark.parametrize(
    "text", ["Answer: ", "The answer:\n", "the city (", "He said “", "a\t", "he said: [", "it is «"]
)
def test_target_follows_without_a_space_where_none_belongs(text: str, target: str, kind: str) -> None:
    it = lm(kind)
    ids = tokens.encode(it, text) + tokens.target_ids(it, text, target)
    assert it.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text + target


@pytest.mark.parametrize("kind", KINDS)
def test_target_is_spelt_as_in_running_text(kind: str) -> None:
    """The ids are those that the whole text has, where the tokenizer cuts between words."""
    it = lm(kind)
    for edit in tiny_edits(20):
        whole = tokens.encode(it, f"{edit.text} {edit.target}")
        assert tokens.encode(it, edit.text) + tokens.target_ids(it, edit.text, edit.target) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_without_token_is_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="the target '' has no token"):
        tokens.target_ids(lm(kind), "Answer: ", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["He plays the sport of", "Answer: "])
def test_a_target_may_end_with_the_end_token(text: str, kind: str) -> None:
    it = lm(kind)
    said = tokens.target_ids(it, text, "soccer")
    assert tokens.target_ids(it, text, "soccer</s>") == [*said, 2]
    assert tokens.target_ids(it, text, "soccer </s>") == [*said, 2]
    assert tokens.target_ids(it, text, "</s>") == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_has_its_other_braces_doubled(kind: str) -> None:
    located = tokens.locate_subject(lm(kind), "The set {{1}} of {} is {{}}", "Rome")
    assert located.ids == tokens.encode(lm(kind), "The set {1} of Rome is {}")
    check_site(lm(kind), located, "The set {1} of Rome", len(bos(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_is_left_as_it_was(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    it = LM.wrap(tiny_model("llama", layers=1), tokenizer)
    before = state(tokenizer)
    tokens.locate_subject(it, "The city of {} is", "Rome")
    tokens.encode(it, "the city")
    tokens.target_ids(it, "the city of", "Rome")
    with pytest.raises(RequestError):
        tokens.target_ids(it, "Answer: ", "")
    assert state(tokenizer) == before


def state(tokenizer: Any) -> dict[str, Any]:
    names = ("padding_side", "truncation_side", "pad_token_id", "bos_token_id", "eos_token_id", "chat_template")
    seen = {name: getattr(tokenizer, name) for name in names} | {"length": len(tokenizer)}
    return seen | {"backend": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None}
