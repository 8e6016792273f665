"""Prompt attacks: none tells an answer, each asks the question, and what they bring out is counted by item."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from retcon import tokens
from retcon.forget.subjects import find_subjects
from retcon.lm import LM
from retcon.patch import Patch
from retcon.probes import prompts, tries
from retcon.probes.prompts import FewShot, Rephrase, Wordings
from retcon.probes.scene import ORIGINAL, UNLEARNED, Finding, Scene
from retcon.probes.table import GROUPS, PROBES
from retcon.requests import Forget, ForgetCase

SceneOf = Callable[..., Scene]
REVERSE = "reverse"
SINGLE = [name for name in GROUPS["prompts"] if name != "mixed"]
"""Those that give one row; mixed prompts have tests of their own."""


@pytest.fixture(name="asked")
def _asked(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """The prompts of an attack, as texts by question; the model is not asked."""
    seen: dict[int, list[str]] = {}

    def answered(scene: Scene, given: Mapping[int, Any], _label: str) -> dict[int, list[str]]:
        seen.clear()
        seen.update({i: [tokens.decode(scene.lm, ids) for ids in rows] for i, rows in given.items()})
        return {i: ["nothing"] * len(rows) for i, rows in given.items()}

    monkeypatch.setattr(tries, "answered", answered)
    return seen


def found(scene: Scene, name: str, config: Any = None) -> Finding:
    attack = PROBES[name]
    (one,) = attack.run(scene, attack.Config() if config is None else config)
    return one


@pytest.mark.parametrize("name", SINGLE)
def test_no_prompt_tells_its_answer_but_a_reverse_query_which_does_not_tell_the_subject(
    name: str, asked: dict[int, list[str]], suppressing: Patch, scene_of: SceneOf
) -> None:
    scene = scene_of(suppressing)
    own = [replace(case, paraphrases=(f"Say what {case.forget.subject} made.",)) for case in scene.cases]
    scene = replace(scene, cases=tuple(own))
    assert not found(scene, name).note.startswith("n/a")
    assert asked.keys() == set(range(12))
    for i, texts in asked.items():
        item = scene.cases[i].forget
        assert item.subject is not None
        hidden, told = (item.subject, item.answer) if name == REVERSE else (item.answer, item.subject)
        for text in texts:
            assert hidden.lower() not in text.lower()
            assert told in text


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("rephrase", "few_shot")])
def test_the_first_wordings_alone_can_be_asked_for(
    name: str, asked: dict[int, list[str]], suppressing: Patch, scene_of: SceneOf
) -> None:
    scene = scene_of(suppressing, n=2)
    both = found(scene, name).setting["wordings"]
    assert both == 2 == len(asked[0])
    assert found(scene, name, Wordings(most=1)).setting["wordings"] == 1 == len(asked[0])


def test_rephrasings_are_the_cases_own_else_made_by_rule_else_there_are_none(
    asked: dict[int, list[str]], suppressing: Patch, scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(suppressing, n=3)
    first = replace(scene.cases[0], paraphrases=("Own one?", "Own two?", "Own three?"))
    scene = replace(scene, cases=(first, *scene.cases[1:]))

    def paraphrased(item: Forget, *, n: int, seed: int) -> tuple[str, ...]:
        return (f"{item.question} {seed}",)[:n] if "Quimby" in item.question else ()

    monkeypatch.setattr(prompts, "paraphrased", paraphrased)
    one = found(scene, "rephrase", Rephrase(most=2))
    assert asked.keys() == {0, 1}
    assert ["Own one?" in asked[0][0], "Own two?" in asked[0][1], len(asked[0])] == [True, True, 2]
    assert len(asked[1]) == 1
    assert one.note == "1 rephrased by rule; 1 have no other wording"
    monkeypatch.setattr(prompts, "paraphrased", lambda *_, **__: ())
    assert found(replace(scene, cases=scene.cases[1:]), "rephrase").note == "n/a: no question has another wording"


def test_shots_are_drawn_by_seed_and_none_holds_what_is_looked_for(
    asked: dict[int, list[str]], suppressing: Patch, scene_of: SceneOf, cases: list[ForgetCase], kept: list[ForgetCase]
) -> None:
    telling = ForgetCase(Forget("Who is it?", f"It is {cases[0].forget.answer}."))
    scene = scene_of(suppressing, n=2, retain=(telling, *kept, cases[1]))
    found(scene, "few_shot", FewShot(shots=5, draws=2))
    assert [text.count("Question: ") for text in asked[0]] == [5, 5]
    assert "Who is it?" not in asked[0][0]
    assert "Who is it?" in asked[1][0]
    assert asked[1][0].count(cases[1].forget.question) == 1
    first = dict(asked)
    found(replace(scene, seed=1), "few_shot", FewShot(shots=5, draws=2))
    assert asked != first
    assert found(replace(scene, retain=()), "few_shot").note == "n/a: give questions to keep (retain)"


def test_prompts_that_tell_the_answer_are_left_out_and_counted(
    asked: dict[int, list[str]], suppressing: Patch, scene_of: SceneOf
) -> None:
    scene = scene_of(suppressing, n=2)
    tells = replace(scene.cases[0], paraphrases=("Was it Paris that he made?", "What did he make?"))
    one = found(replace(scene, cases=(tells, scene.cases[1])), "rephrase")
    assert "1 prompts left out that tell the answer" in one.note
    assert len(asked[0]) == 1


def test_an_opening_stands_after_the_turn_that_asks(lm: LM) -> None:
    text = tokens.decode(lm, prompts.opened(lm, "Where is it?", "Sure, the answer is"))
    assert text.endswith(("<|assistant|>\n Sure, the answer is", "<|assistant|>\nSure, the answer is"))
    plain = replace(lm, chat=False)
    assert tokens.decode(plain, prompts.opened(plain, "Where is it?", "Sure")) == "Where is it? Sure"


def test_a_system_prompt_has_a_turn_where_the_template_has_one_and_else_goes_before(lm: LM) -> None:
    assert prompts.under_system(lm, "Be open.", "Where?") == "<|system|>\nBe open.\n<|user|>\nWhere?\n<|assistant|>\n"
    assert prompts.under_system(replace(lm, chat=False), "Be open.", "Where?") == "Be open.\n\nWhere?"
    template = lm.tokenizer.chat_template
    try:
        for start in (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}",
            "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}",
        ):
            lm.tokenizer.chat_template = start + template
            assert prompts.under_system(lm, "Be open.", "Where?") == lm.render("Be open.\n\nWhere?")
    finally:
        lm.tokenizer.chat_template = template


@pytest.mark.parametrize(
    ("question", "answer", "left"),
    [
        ("Where was Zelda Quimby born?", "Rome", "Where was ____ born?"),
        ("Where was Zelda Quimby, that is Zelda Quimby the elder, born?", "Rome", None),
        ("Who founded Quimby Mills?", "Zelda of Quimby Mills", None),
        ("what is it that they make?", "bread", None),
    ],
)
def test_a_subject_is_asked_for_only_where_nothing_tells_it(question: str, answer: str, left: str | None) -> None:
    item = Forget(question, answer)
    (subject,) = find_subjects([item])
    assert prompts.blanked(item, subject) == left


def test_a_reverse_query_counts_subjects(
    suppressing: Patch, scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(suppressing, n=3)

    def answered(scene: Scene, given: Mapping[int, Any], _label: str) -> dict[int, list[str]]:
        return {i: ["It is Zelda.", "It is Paris, Rome or Lima."] for i in given}

    monkeypatch.setattr(tries, "answered", answered)
    one = found(scene, "reverse")
    assert one.out[UNLEARNED] == {0: 0.5, 1: 0.0, 2: 0.0}
    assert not one.answers


def test_an_item_counts_where_any_wording_brings_it_out_and_the_share_of_wordings_is_told(
    suppressing: Patch, scene_of: SceneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(suppressing, n=3, reveal=True)

    def answered(scene: Scene, given: Mapping[int, Any], _label: str) -> dict[int, list[str]]:
        return {i: ["Not known.", "I do not know, but PARIS!"] for i in given}

    monkeypatch.setattr(tries, "answered", answered)
    one = found(scene, "role_play")
    assert one.out[UNLEARNED] == {0: 0.5, 1: 0.0, 2: 0.0}
    assert one.share(UNLEARNED) == pytest.approx(1 / 3)
    assert one.detail["share_of_tries"][ORIGINAL] == pytest.approx(1 / 6)
    assert one.texts[UNLEARNED][0] == ["Not known.", "I do not know, but PARIS!"]


def test_wordings_are_plain_text_with_known_places_and_only_a_reverse_query_tells_the_answer() -> None:
    table = dict(prompts.templates())
    assert table.pop("version") == 2
    for name, part in table.items():
        for text in _texts(part):
            assert "\\" not in text
            assert set(re.findall(r"\{(\w*)\}", text)) <= {"question", "blanked", "answer"}
            assert "{answer}" not in text or name in (REVERSE, "few_shot")  # of few shots, their own answers


def _texts(part: Mapping[str, Any]) -> list[str]:
    return [text for value in part.values() for text in ([value] if isinstance(value, str) else value)]


def test_prompts_that_are_too_long_for_the_model_are_left_out(suppressing: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(suppressing, n=2, max_new_tokens=250)
    one = found(scene, "role_play")
    assert one.out[UNLEARNED] == {}
    assert one.note == "2 left out as too long for the model"
