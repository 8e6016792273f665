"""Where a subject begins, under every kind of tokenizer, and what the model's own answer is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from retcon import tokens
from retcon.lm import LM
from retcon.locate.facts import GREEDY_TOKENS, facts_of, subject_start
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]

CASES = [
    Edit("{} is in the city", "The Blue Tower", "x"),
    Edit("The mother tongue of {} is", "Niccolò Paganini", "x"),
    Edit("They say that {}, by the sea, is", "São Tomé", "x"),
    Edit("Who wrote “{}”?", "The river", "x"),
    Edit("{} plays", "Ö", "x"),
    Edit("In {} there", "東京", "x"),
    Edit("東京{}は", "京都", "x"),
]


@pytest.mark.parametrize("edit", CASES, ids=lambda edit: str(edit.subject))
@pytest.mark.parametrize("kind", ["fast", "bos", "sentencepiece", "slow"])
def test_the_subject_is_what_stands_between_its_first_and_last_token(kind: str, edit: Edit) -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind))
    (fact,) = facts_of(lm, [edit], "new")
    first = subject_start(lm, edit)
    assert 0 <= first <= fact.site
    assert edit.subject is not None
    inside = tokens.decode(lm, fact.ids[first : fact.site + 1])
    assert edit.subject in inside or "\ufffd" in inside  # a tokenizer may join a character with its neighbour's bytes
    if first < fact.site:  # and it begins no earlier than it must
        assert edit.subject not in tokens.decode(lm, fact.ids[first + 1 : fact.site + 1])


def test_a_subject_in_a_chat_turn_is_found(tiny_lm: Tiny) -> None:
    lm = LM.wrap(tiny_lm("llama").model, tiny_tokenizer("fast"), chat=True)
    edit = Edit("{} is in the city", "The Blue Tower", "x")
    (fact,) = facts_of(lm, [edit], "new")
    first = subject_start(lm, edit)
    assert first > 3
    assert tokens.decode(lm, fact.ids[first : fact.site + 1]).strip() == "The Blue Tower"


def test_answers_are_those_asked_for(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    said = {
        answer: [(tokens.decode(lm, f.answer).strip(), tokens.decode(lm, f.against).strip()) for f in found]
        for answer in ("old", "new", "contrast")
        for found in [facts_of(lm, edits, answer)]
    }
    assert said["old"] == [(edit.old, "") for edit in edits]
    assert said["new"] == [(edit.target, "") for edit in edits]
    assert said["contrast"] == [(edit.old, edit.target) for edit in edits]


def test_the_model_s_own_answer_ends_before_punctuation(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    ids = {text: tokens.encode(lm, text) for text in (" Paris, the", ", or", " the city of the people of the city")}
    for text, said in ids.items():
        monkeypatch.setattr("retcon.forward.greedy", lambda *_a, said=said, **_k: [said[:GREEDY_TOKENS]])
        (fact,) = facts_of(lm, [Edit("{} is in", "The tower", "x")])
        answer = tokens.decode(lm, fact.answer)
        assert text.startswith(answer)
        assert 1 <= len(fact.answer) <= GREEDY_TOKENS
        assert "," not in answer[1:]
