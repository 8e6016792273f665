"""One round of questions."""

import pytest
from tests.evaluate.forgetting.conftest import World

from retcon.evaluate import answers
from retcon.evaluate.answers import Answers
from retcon.evaluate.forgetting import plan as planning
from retcon.evaluate.forgetting.heard import Heard, ask
from retcon.evaluate.gradients import NoGradient

EMPTY: dict[str, list[object]] = {"retain": [], "holdout": [], "real_authors": [], "world_facts": []}


def test_answers_stand_on_one_line_and_those_cut_off_are_known(world: World) -> None:
    sets = {**EMPTY, "forget": world.forget[:2]}
    plan = planning.make(world.lm, sets, ["probability"], max_new_tokens=5, seed=0)  # type: ignore[arg-type]
    heard = ask(world.lm, plan, Answers(world.lm))
    first, second = plan.sets["forget"]
    assert heard.said[second.prompt] == "Cairo"
    assert heard.said[first.prompt] != "Lima in Peru"
    assert "Lima in Peru".startswith(heard.said[first.prompt])
    assert heard.cut == {first.prompt}
    assert set(heard.scores) == {(item.prompt, item.answer) for item in (first, second)}
    assert heard.details == {}


def test_gradients_are_taken_where_they_are_wanted_and_there_is_a_holdout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {**EMPTY, "forget": world.forget[:2], "holdout": world.holdout[:1]}

    def heard(asked: str, **more: list[object]) -> Heard:
        plan = planning.make(world.lm, sets | more, [asked], max_new_tokens=1, seed=0)  # type: ignore[arg-type]
        return ask(world.lm, plan, Answers(world.lm))

    found = heard("mia_grad_norm")
    assert len(found.slopes) == 3
    assert all(value > 0 for value in found.slopes.values())
    assert found.no_slopes == ""
    assert heard("mia_loss").slopes == heard("mia_grad_norm", holdout=[]).slopes == {}
    monkeypatch.setattr(answers, "gradient_scores", shut)
    assert (heard("mia_grad_norm").slopes, heard("mia_grad_norm").no_slopes) == ({}, "nothing comes through")


def shut(*_: object) -> None:
    raise NoGradient("nothing comes through")


def test_a_twin_says_nothing(world: World) -> None:
    sets = {**EMPTY, "forget": world.forget[:2]}
    plan = planning.make(world.lm, sets, ["probability"], max_new_tokens=5, seed=0)  # type: ignore[arg-type]
    assert ask(world.lm, plan.of_twin(), Answers(world.lm)).said == {}
