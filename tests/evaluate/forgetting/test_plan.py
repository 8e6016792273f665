"""What is asked: figures by name, sets, wordings, and in which form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.evaluate.forgetting.conftest import World

from retcon import tokens
from retcon.errors import RetconError
from retcon.evaluate.forgetting import plan as planning
from retcon.evaluate.forgetting.plan import Plan, resolve
from retcon.metrics import FORGET_METRICS


def made(world: World, *asked: str, twin: bool = False) -> Plan:
    sets = {
        "forget": world.forget, "retain": world.retain, "holdout": world.holdout, "real_authors": world.retain,
        "world_facts": (),
    }  # fmt: skip
    return planning.make(world.lm, sets, asked, max_new_tokens=4, seed=0, twin=twin)


def test_the_default_figures_and_those_that_a_twin_allows() -> None:
    assert resolve(None) == [name for name in FORGET_METRICS if name in planning.DEFAULT]
    assert resolve(None, twin=True)[-1] == "forget_quality"
    assert set(resolve(None, near=True)) == {*planning.DEFAULT, "locality_near"}
    assert resolve(None, twin=True, holdout=True)[-3:] == ["forget_quality", "privleak", "rel_diff"]
    assert resolve(["leakage", "all"]) == list(FORGET_METRICS)
    assert resolve(["membership"]) == [name for name in FORGET_METRICS if name.startswith("mia_")]
    with pytest.raises(RetconError, match="no metric 'efficacy' of forgetting"):
        resolve(["efficacy"])


def test_only_what_a_figure_needs_is_asked(world: World) -> None:
    plan = made(world, "reliability")
    assert {name: len(items) for name, items in plan.sets.items() if items} == {"forget": 4}
    assert list(planning.prompts(plan)) == [item.prompt for item in plan.sets["forget"]]
    assert list(planning.pairs(plan)) == list(planning.ranked(plan)) == []
    plan = made(world, "locality", "generalization")
    assert len(set(planning.prompts(plan))) == 4 + 7 + 3
    plan = made(world, "mia_min_k_plus_plus")
    assert len(set(planning.pairs(plan))) == len(set(planning.ranked(plan))) == 4 + 4
    plan = made(world, "mia_grad_norm")
    assert list(planning.pairs(plan)) == list(planning.ranked(plan)) == []
    assert list(planning.sloped(plan)) == [
        (item.prompt, item.answer) for name in ("forget", "holdout") for item in plan.sets[name]
    ]
    alone = planning.make(world.lm, {"forget": world.forget}, ["mia_grad_norm"], max_new_tokens=4, seed=0)
    assert list(planning.sloped(alone)) == []
    plan = made(world, "mia_reference")
    assert "mia_loss" in plan.wanted
    assert len(set(planning.pairs(plan))) == 4 + 4
    assert list(planning.sloped(plan)) == []
    plan = made(world, "forget_quality")
    assert "truth_ratio" in plan.wanted
    assert len(set(planning.pairs(plan))) == 4 * (1 + 2)


def test_a_twin_is_asked_for_what_it_is_checked_by(world: World) -> None:
    assert list(planning.sloped(made(world, "mia_grad_norm", twin=True).of_twin())) == []
    plan = made(world, "reliability", twin=True)
    assert plan.wanted >= {"probability", "mia_min_k"}
    other = plan.of_twin()
    assert list(planning.prompts(other)) == []
    assert len(set(planning.pairs(other))) == 4 * (1 + 2) + 4 + len(world.retain)


def test_answers_close_with_the_end_token_and_follow_the_rendered_question(world: World) -> None:
    item = made(world, "probability").sets["forget"][1]
    text = world.lm.render("Where was Big Ben born?")
    assert list(item.prompt) == tokens.encode(world.lm, text)
    assert list(item.answer) == [*tokens.target_ids(world.lm, text, "Cairo"), world.lm.tokenizer.eos_token_id]
    assert item.correct == item.answer
    assert len(item.wrong) == 2
    case = replace(world.forget[1], paraphrased_answer="in Cairo")
    sets = dict.fromkeys(("retain", "holdout", "real_authors", "world_facts"), ())
    plan = planning.make(world.lm, sets | {"forget": [case]}, ["truth_ratio"], max_new_tokens=4, seed=0)
    assert list(plan.sets["forget"][0].correct) == tokens.target_ids(world.lm, text, "in Cairo</s>")
