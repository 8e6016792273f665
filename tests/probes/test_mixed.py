"""Mixed prompts: the question among others, before and after them, with room for all answers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from retcon import tokens
from retcon.errors import RetconError
from retcon.patch import Patch
from retcon.probes import tries
from retcon.probes.mixed import Mixed, run
from retcon.probes.record import row
from retcon.probes.scene import ORIGINAL, UNLEARNED, Scene
from retcon.probes.verdict import label
from retcon.requests import Forget, ForgetCase

SceneOf = Callable[..., Scene]


@pytest.fixture(name="asked")
def _asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[int, list[str]]]]:
    """The prompts of each row, with the most tokens of an answer; the model is not asked."""
    seen: list[tuple[int, dict[int, list[str]]]] = []

    def answered(scene: Scene, given: Mapping[int, Any], _label: str) -> dict[int, list[str]]:
        texts = {i: [tokens.decode(scene.lm, ids) for ids in rows] for i, rows in given.items()}
        seen.append((scene.max_new_tokens, texts))
        return {i: [f"1. {scene.cases[i].forget.answer}"] + ["No."] * (len(rows) - 1) for i, rows in given.items()}

    monkeypatch.setattr(tries, "answered", answered)
    return seen


def test_the_question_stands_first_or_last_among_one_to_three_others(
    asked: list[tuple[int, dict[int, list[str]]]], suppressing: Patch, scene_of: SceneOf, kept: list[ForgetCase]
) -> None:
    scene = scene_of(suppressing, n=2)
    found = list(run(scene, Mixed()))
    assert [one.setting["order"] for one in found] == ["first", "last"]
    room, first = asked[0]
    assert room == 4 * scene.max_new_tokens
    assert [text.count("?") for text in first[0]] == [2, 3, 4]
    question = scene.items[0].question
    assert all(f"1. {question}" in text for text in first[0])
    last = asked[-1][1][0]
    assert [f"{n}. {question}" in text for n, text in zip((2, 3, 4), last, strict=True)] == [True] * 3
    others = {case.forget.question for case in kept}
    assert all(any(other in text for other in others) for text in first[0])
    assert found[0].out[UNLEARNED] == {0: pytest.approx(1 / 3), 1: pytest.approx(1 / 3)}
    assert label(row(scene, "mixed", found[0], 0.0)) == "mixed (order first)"


def test_no_question_beside_it_tells_what_is_looked_for(
    asked: list[tuple[int, dict[int, list[str]]]], suppressing: Patch, scene_of: SceneOf
) -> None:
    scene = scene_of(suppressing, n=1)
    answer = scene.items[0].answer
    telling = tuple(
        ForgetCase(item) for item in (Forget("Who is it?", f"It is {answer}."), Forget(f"Is {answer} old?", "Yes"))
    )
    scene = replace(scene, retain=(*telling, *scene.retain[:1]))
    assert [one.share(ORIGINAL) for one in run(scene, Mixed(others=(1, 2)))] == [1.0, 1.0]
    ((text,),) = asked[0][1].values()
    assert scene.retain[2].forget.question in text
    assert answer not in text


def test_without_questions_to_keep_it_says_so(suppressing: Patch, scene_of: SceneOf) -> None:
    bare = replace(scene_of(suppressing, n=1), retain=())
    assert [one.note for one in run(bare, Mixed())] == ["n/a: give questions to keep (retain)"] * 2
    with pytest.raises(RetconError, match="at least 1 in each of others"):
        next(run(bare, Mixed(others=(0,))))
