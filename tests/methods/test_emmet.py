"""EMMET is MEMIT with lambda = w mu, and at mu = 0 meets every fact exactly."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retcon import stats
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import EMMET, MEMIT, EMMETConfig, MEMITConfig, method
from retcon.methods.family import Problem
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.testing.contract import quick

F64 = torch.float64
QUICK: dict[str, Any] = {"statistics": "none", "templates": 0, "steps": 5}


@cache
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(seed: int, n: int, before: int = 0) -> Problem:
    """Keys of 12 dimensions, residuals of 5, statistics of 200 tokens."""
    tokens = draw(seed, 12, 200)
    moments = stats.Moments(tokens @ tokens.T / 200, 200, {})
    return Problem(
        lm(), 1, "", draw(seed + 1, 12, n), draw(seed + 2, 5, n), None, moments,  # type: ignore[arg-type]
        draw(seed + 3, 12, before), (), (),
    )  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(0, 4), st.floats(-2, 4), st.floats(-3, 1))
def test_above_zero_it_is_memit(seed: int, n: int, before: int, weight: float, mu: float) -> None:
    w, mu = 10**weight, 10**mu
    asked = problem(seed, n, before)
    found = EMMET(EMMETConfig(weight=w, regulariser=mu)).rule(asked).dense()
    wanted = MEMIT(MEMITConfig(ridge=w * mu)).rule(asked).dense()
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()
    if before:
        return
    assert asked.moments is not None
    inverse = torch.linalg.inv(w * asked.moments.second)
    core = torch.linalg.inv(asked.keys.T @ inverse @ asked.keys + mu * torch.eye(n, dtype=F64))
    published = asked.residuals @ core @ asked.keys.T @ inverse
    assert (found - published).norm() <= 1e-8 * published.norm()


def test_at_zero_every_fact_is_met_and_past_keys_give_way_no_more_than_they_must() -> None:
    rule = EMMET(EMMETConfig(weight=1e-3, regulariser=0.0)).rule
    asked, alone = problem(0, 6, 3), problem(0, 6)
    held, free = rule(asked).dense(), rule(alone).dense()
    for change in (held, free):
        assert (change @ asked.keys - asked.residuals).norm() <= 1e-9 * asked.residuals.norm()
    assert (held @ asked.past).norm() < 0.1 * (free @ asked.past).norm()


def test_the_patches_are_the_same_too() -> None:
    one = EMMET(EMMETConfig(layers=(1, 2), weight=20.0, regulariser=0.25, **QUICK)).edit(lm(), tiny_edits(3))
    other = MEMIT(MEMITConfig(layers=(1, 2), ridge=5.0, **QUICK)).edit(lm(), tiny_edits(3))
    assert difference(other, one) < 1e-12
    assert one.info["ridge"] == 5.0
    assert "ridge" not in other.info


def test_the_model_meets_the_targets_exactly() -> None:
    patch = EMMET(EMMETConfig(regulariser=0.0, rounds=1, **QUICK)).edit(lm(), tiny_edits(3))
    assert len(patch.entries) == 1
    assert patch.info["ridge"] == 0
    assert max(fact["left"] for fact in patch.info["facts"]) < 1e-3


def test_facts_that_share_a_key_cannot_be_met_exactly() -> None:
    two = [Edit("{} is in", "Ada Lovelace", "Paris"), Edit("{} was made by", "Ada Lovelace", "Nokia")]
    with pytest.raises(RetconError, match="layer 1: two facts share a key"):
        EMMET(EMMETConfig(regulariser=0.0, **QUICK)).edit(lm(), two)


def test_one_layer_is_edited_unless_more_are_asked_for() -> None:
    deep = LM.wrap(tiny_model("llama", layers=12), tiny_tokenizer())
    assert method("memit").layers(deep) == (1, 2, 3)  # type: ignore[attr-defined]
    assert EMMET().layers(deep) == (3,)
    assert EMMET(EMMETConfig(layers=(2, 5))).layers(deep) == (2, 5)


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": -1.0}, {"regulariser": -0.1}])
def test_senseless_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RetconError, match="weight must be above 0 and regulariser 0 or more"):
        quick("emmet", **options).edit(lm(), tiny_edits(1))
