"""The options of the objectives: the published defaults, and one class that all of them share."""

import dataclasses
from typing import Any

import pytest

from retcon.methods import METHODS
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ga", {"forget_weight": 1, "retain_weight": 0, "epochs": 3}),
        ("graddiff", {"forget_weight": 1, "retain_weight": 1, "retain_loss": "nll", "epochs": 5}),
        ("kl", {"forget_weight": 1, "retain_weight": 1, "retain_loss": "kl"}),
        ("idk", {"forget_weight": 1, "retain_weight": 1, "retain_loss": "nll", "joint_mean": False}),
        ("dpo", {"beta": 0.1, "forget_weight": 1, "retain_weight": 1, "retain_loss": "nll"}),
        ("npo", {"beta": 0.1, "forget_weight": 1, "retain_weight": 1, "retain_loss": "nll"}),
        ("simnpo", {"beta": 4.5, "margin": 0, "forget_weight": 0.125, "retain_weight": 1}),
        ("rmu", {"steering": 2, "forget_weight": 1, "retain_weight": 1, "retain_loss": "embed"}),
        ("undial", {"beta": 10, "forget_weight": 1, "retain_weight": 0, "epochs": 10}),
        ("wga", {"beta": 1, "forget_weight": 1, "retain_weight": 1, "epochs": 5}),
        ("satimp", {"beta1": 5, "beta2": 1, "forget_weight": 0.1, "retain_weight": 1}),
        ("ceu", {"ignore_first": 1, "retain_weight": 0}),
    ],
)
def test_the_defaults_are_the_published_ones(name: str, wanted: dict[str, Any]) -> None:
    options = METHODS[name].Config()
    assert isinstance(options, UnlearningConfig)
    assert {key: getattr(options, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_the_options_that_all_share(name: str) -> None:
    kind = METHODS[name].Config
    assert issubclass(kind, UnlearningConfig)
    shared = [field.name for field in dataclasses.fields(UnlearningConfig)]
    assert [field.name for field in dataclasses.fields(kind)][: len(shared)] == shared
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().lr = 1.0


@pytest.mark.parametrize(("name", "lr"), [("ga", 1e-5), ("graddiff", 5e-5), ("npo", 1e-4)])
def test_factors_get_ten_times_the_learning_rate_that_is_published_for_all_weights(name: str, lr: float) -> None:
    assert METHODS[name].Config().params == "lora"
    assert METHODS[name].Config().lr == lr
