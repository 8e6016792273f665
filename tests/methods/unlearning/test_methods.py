"""Each objective as a method: it forgets what a model knew, its defaults do no harm, and RMU's layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import METHODS
from retcon.methods.unlearning.base import Unlearning, linear_paths
from retcon.methods.unlearning.objectives import OBJECTIVES
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import RETAIN, knowing, quick
from retcon.testing.snapshot import changed, snapshot

TinyLM = Callable[..., LM]
NAMES = list(OBJECTIVES)


def made(name: str, **options: Any) -> Any:
    return quick(name, **options)


def test_every_objective_is_a_method_of_its_name() -> None:
    kinds = {name: kind for name, kind in METHODS.items() if issubclass(kind, Unlearning)}
    assert list(kinds) == NAMES
    for name, kind in kinds.items():
        assert kind.name == name
        assert kind.unlearns
        assert "arXiv" in (kind.__doc__ or "")
    assert not any(getattr(kind, "unlearns", False) for name, kind in METHODS.items() if name not in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knew_the_answers_forgets_them(name: str) -> None:
    lm = knowing(made(name), LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(4))
    before = snapshot(lm.model, lm.tokenizer)
    found = made(name, epochs=12).edit(lm, tiny_edits(4), retain=RETAIN)
    assert not changed(before, snapshot(lm.model, lm.tokenizer))
    facts = found.info["facts"]
    known, left = (sum(fact[key] for fact in facts) / 4 for key in ("before", "probability"))
    assert known > 0.1
    assert left < 0.9 * known
    refuses = {"refusal_before", "refusal_probability"} <= facts[0].keys()
    assert refuses == (name in ("idk", "dpo"))
    if refuses:
        assert all(fact["refusal_probability"] > fact["refusal_before"] for fact in facts)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_do_not_ruin_a_small_model(name: str) -> None:
    lm = knowing(made(name), LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(4))
    found = METHODS[name]().edit(lm, tiny_edits(4), retain=RETAIN)
    first, *_, last = found.info["unlearning"]["readings"]
    assert last["utility"] > 0.9 * first["utility"]
    assert last["perplexity"] < 1.2 * first["perplexity"]
    assert found.info["unlearning"]["best"] == found.info["unlearning"]["steps"] > 0


# ------------------------------------------------------------------------------------------------- RMU


def test_rmu_trains_the_steered_layer_and_the_two_below(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    assert made("rmu").layer(lm) == 1
    assert made("rmu").layers(lm) == (0, 1)
    assert made("rmu", layer=3).layers(lm) == (1, 2, 3)
    assert made("rmu", layer=3, layers=(2,)).layers(lm) == (2,)
    deep = LM(lm.model, lm.tokenizer, replace(lm.arch, blocks=lm.arch.blocks * 8), "deep")
    assert made("rmu").layer(deep) == 7
    found = made("rmu", epochs=1, layer=2).edit(lm, tiny_edits(2), retain=RETAIN)
    assert list(found.entries) == linear_paths(lm, [0, 1, 2])
    with pytest.raises(RetconError, match="layer 3 is above the steered layer 1"):
        made("rmu", layers=(3,)).edit(lm, tiny_edits(1), retain=RETAIN)
    with pytest.raises(RetconError, match="name some of 0 to 3"):
        made("rmu", layer=4).edit(lm, tiny_edits(1), retain=RETAIN)


def test_rmu_steers_states_at_answers_and_holds_those_at_texts(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    readings = {}
    for weight in (0.0, 20.0):
        found = made("rmu", epochs=20, lr=3e-3, retain_weight=weight).edit(lm, tiny_edits(3), retain=RETAIN)
        readings[weight] = found.info["unlearning"]["readings"]
    assert readings[0.0][-1]["loss"] < 0.7 * readings[0.0][1]["loss"]
    drift = {w: abs(told[-1]["perplexity"] / told[0]["perplexity"] - 1) for w, told in readings.items()}
    assert drift[20.0] < 0.7 * drift[0.0]


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "embed"])
def test_rmu_can_hold_what_is_to_stay_by_any_of_the_losses(retain_loss: str, tiny_lm: TinyLM) -> None:
    found = made("rmu", retain_loss=retain_loss, epochs=2).edit(tiny_lm("gptj"), tiny_edits(2), retain=RETAIN)
    assert all(entry.delta().any() for entry in found.entries.values())
