"""One round of questions."""

from tests.evaluate.forgetting.conftest import World

from retcon.evaluate.answers import Answers
from retcon.evaluate.forgetting import plan as planning
from retcon.evaluate.forgetting.heard import ask

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


def test_a_twin_says_nothing(world: World) -> None:
    sets = {**EMPTY, "forget": world.forget[:2]}
    plan = planning.make(world.lm, sets, ["probability"], max_new_tokens=5, seed=0)  # type: ignore[arg-type]
    assert ask(world.lm, plan.of_twin(), Answers(world.lm)).said == {}
