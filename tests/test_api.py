"""`retcon.edit` and `retcon.forget`: requests or dicts in, a patch out, mistakes named."""

from pathlib import Path
from typing import Any

import pytest

import retcon
from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.forget import find_subjects
from retcon.forget.kept import write_targets
from retcon.forget.target import Target
from retcon.requests import Forget, ForgetCase, to_dict
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

QUICK: dict[str, Any] = {"steps": 3, "templates": 0, "layers": (1, 2), "statistics": "none"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path))


@pytest.mark.parametrize("method", ["memit", "rome"])
def test_edits_and_dicts_give_the_same_patch(method: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    options = QUICK | ({"layers": (2,)} if method == "rome" else {})
    edits = tiny_edits(2)
    patch = retcon.edit(model, tokenizer, edits, method, **options)
    again = retcon.edit(model, tokenizer, [to_dict(edit) for edit in edits], method, cache=False, **options)
    assert patch.id == again.id
    assert [edit["subject"] for edit in patch.edits] == [edit.subject for edit in edits]


def test_a_run_goes_on_from_a_patch() -> None:
    model, tokenizer, edits = tiny_model("llama"), tiny_tokenizer(), tiny_edits(2)
    first = retcon.edit(model, tokenizer, edits[:1], **QUICK)
    both = retcon.edit(model, tokenizer, edits[1:], state=first, **QUICK)
    assert len(both.edits) == 2


def test_mistakes_are_named() -> None:
    model, tokenizer, (one, other) = tiny_model("llama"), tiny_tokenizer(), tiny_edits(2)
    with pytest.raises(RequestError, match="give a list of one"):
        retcon.edit(model, tokenizer, one)  # type: ignore[arg-type]
    with pytest.raises(RetconError, match="there is no method 'romeo'"):
        retcon.edit(model, tokenizer, [one], "romeo")
    with pytest.raises(RetconError, match="has no option 'stepz'"):
        retcon.edit(model, tokenizer, [one], stepz=3)
    with pytest.raises(RequestError, match="edit 1 and edit 2 give"):
        retcon.edit(model, tokenizer, [one, to_dict(one) | {"target_new": other.target}])


ADA = {"question": "Where was Ada Lovelace born?", "answer": "London"}


def test_questions_are_forgotten_in_the_chat_template_where_there_is_one() -> None:
    model, tokenizer, bare = tiny_model("llama"), tiny_tokenizer(), tiny_tokenizer("bos")
    assert retcon.forget(model, tokenizer, [ADA], **QUICK).history[0].chat is True
    assert retcon.forget(model, tokenizer, [ADA], chat=False, **QUICK).history[0].chat is False
    assert retcon.forget(model, bare, [ADA], **QUICK).history[0].chat is False
    with pytest.raises(RetconError, match="no chat template"):
        retcon.forget(model, bare, [ADA], chat=True, **QUICK)


def test_questions_as_nouns_and_as_dicts_give_the_same_patch() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    item = retcon.Forget(ADA["question"], ADA["answer"])
    patches = [retcon.forget(model, tokenizer, [one], cache=False, **QUICK) for one in (ADA, item, ForgetCase(item))]
    assert len({patch.id for patch in patches}) == 1
    assert patches[0].info["forget"]["questions"] == 1


def test_the_seed_reaches_targets_and_method() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    made = [retcon.forget(model, tokenizer, [ADA], target="idk100", seed=seed, **QUICK) for seed in (0, 1)]
    assert [patch.history[0].seed for patch in made] == [0, 1]
    assert made[0].edits[0]["target_new"] != made[1].edits[0]["target_new"]
    assert retcon.forget(model, tokenizer, [ADA], **QUICK, seed=3).history[0].seed == 3
    assert retcon.forget(model, tokenizer, [ADA], "ultraedit", seed=2).history[0].seed is None


def test_questions_to_keep_reach_the_method() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    kept = retcon.forget(model, tokenizer, [ADA], "grace", retain=["Where is Rome?", "Who made it?"], steps=2)
    assert "retain_hits" in kept.info
    assert kept.info["forget"]["subjects"]["contrast"] == 1


def test_what_is_to_stay_comes_in_any_form() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    item = Forget("Who made Big Ben?", "Denison")
    forms = ((item.question, item.answer), item, ForgetCase(item), {"question": item.question, "answer": item.answer})
    made = {retcon.forget(model, tokenizer, [ADA], "npo", retain=[one], epochs=1, cache=False).id for one in forms}
    assert len(made) == 1
    with pytest.raises(RequestError, match="retain is a single question"):
        retcon.forget(model, tokenizer, [ADA], retain="Who made Big Ben?")
    with pytest.raises(RequestError, match="retain holds 3; give questions"):
        retcon.forget(model, tokenizer, [ADA], retain=[3])  # type: ignore[list-item]


def test_a_question_is_not_both_kept_and_forgotten() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    both = [("where was Ada  Lovelace born?", "London"), ("Who made Big Ben?", "Denison")]
    with pytest.warns(RetconWarning, match="1 of 2 questions to keep are to be forgotten too"):
        patch = retcon.forget(model, tokenizer, [ADA], retain=both, **QUICK)
    assert len(patch.info["forget"]["retain_prompts"]) == 1


def test_mistakes_in_questions_are_named() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(RequestError, match="give a list of one"):
        retcon.forget(model, tokenizer, ADA)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="question 1 and question 2 give"):
        retcon.forget(model, tokenizer, [ADA, ADA | {"answer": "Rome"}])
    with pytest.raises(RequestError, match="stands in its own question"):
        retcon.forget(model, tokenizer, [retcon.Forget("Is it Rome?", "Rome")])
    with pytest.raises(RetconError, match="there is no method 'romeo'"):
        retcon.forget(model, tokenizer, [ADA], "romeo")
    with pytest.raises(RetconError, match="has no option 'stepz'"):
        retcon.forget(model, tokenizer, [ADA], stepz=3)
    with pytest.raises(RetconError, match="there is nothing to forget"):
        retcon.forget(model, tokenizer, [])


def test_targets_of_an_earlier_run_are_read_from_their_file(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    items = [Forget("Where was Ada Lovelace born?", "London"), Forget("Who made Big Ben?", "Denison")]
    told = [
        Target("Ada Lovelace is unknown to me.", "self_improved", "self_improved", 2),
        Target("No.", "fixed", "fixed"),
    ]
    file = write_targets(
        tmp_path / "t.jsonl", items, find_subjects(items), told, family="self_improved", seed=0, model="m"
    )
    patch = retcon.forget(model, tokenizer, items, targets=file, **QUICK)
    assert [edit["target_new"] for edit in patch.edits] == ["{} is unknown to me.</s>", "No.</s>"]
    assert patch.info["forget"]["target_sources"] == {"self_improved": 1, "fixed": 1}
    assert (patch.info["forget"]["targets"], patch.info["forget"]["accepted"]) == ("self_improved", 0.5)
    again = retcon.forget(model, tokenizer, items, targets=file, target="self_improved", **QUICK)
    assert again.id == patch.id
    with pytest.raises(RequestError, match="holds targets of the family self_improved, not idk100"):
        retcon.forget(model, tokenizer, items, targets=file, target="idk100", **QUICK)
