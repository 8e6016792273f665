"""Questions become edits: braces, end tokens, merged prompts, what is hidden, where the key is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retcon import tokens
from retcon.errors import RequestError, RetconWarning
from retcon.forget.mapping import edits_of, keys_of, likeness, placed
from retcon.forget.privacy import id_of
from retcon.forget.subjects import Subject, find_subjects
from retcon.forget.target import Target
from retcon.lm import LM
from retcon.methods import method
from retcon.requests import Forget, to_dict
from retcon.testing import tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]

ADA = Forget("Where was Ada Lovelace born?", "London", id="a")
BEN = Forget("Who made the bell of Big Ben?", "Denison", id="b")
NO = Target("I don't know.", "fixed", "fixed")


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


def test_a_question_is_an_edit_to_its_target(tiny_lm: Tiny) -> None:
    (edit,) = edits_of(tiny_lm("llama"), [ADA], [NO], find_subjects([ADA]))
    assert (edit.prompt, edit.subject) == ("Where was {} born?", "Ada Lovelace")
    assert (edit.text, edit.target, edit.old) == (ADA.question, "I don't know.</s>", "London")
    assert edit.id == id_of(ADA)
    assert edit.tie is None
    (edit,) = edits_of(tiny_lm("llama"), [ADA], [NO], find_subjects([ADA]), end=False)
    assert edit.target == "I don't know."


@pytest.mark.parametrize(
    "question",
    ["What does {} do in C?", "Is {x} in {Ada, Ben} or {{y}}?", "Who wrote '{}' and {}", "}{", "What is {0}?", "{}"],
)
def test_questions_with_braces_come_back_whole(tiny_lm: Tiny, question: str) -> None:
    lm, item = tiny_lm("llama"), Forget(question, "London")
    (edit,) = edits_of(lm, [item], [NO], placed(lm, [item], find_subjects([item])))
    assert edit.text == question
    located = tokens.locate_subject(lm, edit.prompt, str(edit.subject))
    assert located.ids == tokens.encode(lm, question)


def test_records_hide_the_answer_and_by_default_the_question(tiny_lm: Tiny) -> None:
    lm, subjects = tiny_lm("llama"), find_subjects([ADA])
    no = Target("I never met Ada Lovelace.", "contextual", "template")
    record = to_dict(edits_of(lm, [ADA], [no], subjects)[0])
    assert record["target_new"] == "I never met {}.</s>"
    assert [record[name] for name in ("prompt", "subject", "target_true")] == [None] * 3
    record = to_dict(edits_of(lm, [ADA], [no], subjects, keep_questions=True)[0])
    assert (record["prompt"], record["subject"]) == ("Where was {} born?", "Ada Lovelace")
    assert record["target_true"] is None


def test_concat_is_one_prompt_with_the_last_members_subject(tiny_lm: Tiny) -> None:
    lm, items = tiny_lm("llama"), [BEN, ADA]
    (edit,) = edits_of(lm, items, [NO, NO], find_subjects(items), [[0, 1]])
    assert edit.prompt == "Who made the bell of Big Ben?\nWhere was {} born?"
    assert (edit.subject, edit.old, edit.tie) == ("Ada Lovelace", None, None)
    (other,) = edits_of(lm, items[::-1], [NO, NO], find_subjects(items[::-1]), [[0, 1]])
    assert other.text == f"{ADA.question}\n{BEN.question}"
    assert other.id != edit.id
    same = [Forget("Is Rome where Rome was?", "x"), Forget("Was Rome old?", "y")]
    (edit,) = edits_of(lm, same, [NO, NO], find_subjects(same), [[0, 1]])
    assert edit.prompt == "Is Rome where Rome was?\nWas {} old?"


def test_mean_key_ties_prompts_that_stay_apart(tiny_lm: Tiny) -> None:
    lm, items = tiny_lm("llama"), [BEN, ADA, Forget("Is Rome old?", "x")]
    edits = edits_of(lm, items, [NO] * 3, find_subjects(items), [[0, 2], [1]], mode="mean_key")
    assert [edit.text for edit in edits] == [BEN.question, "Is Rome old?", ADA.question]
    assert edits[0].tie == edits[1].tie is not None
    assert edits[2].tie is None
    again = edits_of(lm, items[::-1], [NO] * 3, find_subjects(items[::-1]), [[0, 2]], mode="mean_key")
    assert {edit.tie for edit in again} == {edits[0].tie}


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
def test_groups_of_one_are_the_plain_edits(tiny_lm: Tiny, mode: str) -> None:
    lm, items = tiny_lm("llama"), [BEN, ADA]
    plain = edits_of(lm, items, [NO, NO], find_subjects(items))
    assert edits_of(lm, items, [NO, NO], find_subjects(items), [[0], [1]], mode=mode) == plain


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
def test_a_group_with_two_targets_is_refused(tiny_lm: Tiny, mode: str) -> None:
    items, other = [BEN, ADA], Target("No.", "fixed", "fixed")
    with pytest.raises(RequestError, match="has different targets; give it one"):
        edits_of(tiny_lm("llama"), items, [NO, other], find_subjects(items), [[0, 1]], mode=mode)


def test_a_subject_no_token_ends_gives_way_to_the_last_word(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, found = tiny_lm("llama"), find_subjects([ADA])
    locate = tokens.locate_subject

    def failing(lm: LM, prompt: str, subject: str, prefix: str = "") -> tokens.Located:
        if subject == "Ada Lovelace":
            raise RequestError("no token ends it")
        return locate(lm, prompt, subject, prefix)

    monkeypatch.setattr(tokens, "locate_subject", failing)
    (subject,) = placed(lm, [ADA], found)
    assert (subject.text, subject.source) == ("?", "last")


def test_subjects_at_the_first_token_warn() -> None:
    item = Forget("Paris is where?", "France")
    for kind in ("fast", "bos"):
        lm = LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer(kind))
        one = Subject("P", 0, "given")
        with pytest.warns(RetconWarning, match="1 of 1 subjects end at the first token"):
            placed(lm, [item], [one])
    placed(LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer("fast"), chat=True), [item], [one])


def test_keys_are_read_at_the_subjects_and_compared(tiny_lm: Tiny) -> None:
    lm, items = tiny_lm("llama"), [ADA, BEN, Forget("Was Ada Lovelace rich?", "No")]
    edits = edits_of(lm, items, [NO] * 3, find_subjects(items))
    keys = keys_of(lm, edits, method("memit", layers=(1, 2)))
    assert keys is not None
    assert keys.shape == (3, lm.arch.d_mlp)
    assert keys_of(lm, edits, method("grace")) is None
    unit = torch.nn.functional.normalize(keys, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert likeness(keys) == pytest.approx(sum(pairs) / 3, abs=1e-4)
    assert likeness(keys[:1]) is None
    with pytest.warns(RetconWarning, match="the keys of the 2 questions are nearly one"):
        likeness(keys[[0, 0]])
