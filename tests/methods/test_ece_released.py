"""ECE as released: its scores and its selection are the stated ones, and with all neurons it is sequential MEMIT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import solve
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import MEMIT, MEMITConfig
from retcon.methods.ece_released import ECEReleased, ECEReleasedConfig, Score, scores
from retcon.methods.family import Problem
from retcon.sweep import Reading
from retcon.testing import tiny_edits

Tiny = Callable[..., LM]

QUICK: dict[str, Any] = {"statistics": "none", "templates": 0, "steps": 6, "layers": (1, 2), "ridge": 1.0}


def released(**options: Any) -> ECEReleased:
    return ECEReleased(ECEReleasedConfig(**QUICK | options))


class Watched(ECEReleased):
    """Keeps what its rule was asked and said."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ECEReleasedConfig(**QUICK | options))
        self.seen: list[tuple[Problem, Tensor]] = []

    def rule(self, problem: Problem) -> solve.Factors:
        found = super().rule(problem)
        self.seen.append((problem, found.dense()))
        return found


def problem(lm: LM, keys: Tensor) -> Problem:
    n, d = keys.shape[1], lm.arch.d_model
    nothing = torch.zeros(n, d, dtype=torch.float64)
    reading = Reading(keys.T, keys.T, nothing, nothing)
    none = torch.zeros(len(keys), 0, dtype=torch.float64)
    return Problem(lm, 1, lm.arch.mlp_out[1], keys, nothing.T, reading, None, none, tiny_edits(n), ())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_sums_of_sizes(tiny_lm: Tiny, family: str) -> None:
    """Element by element, for a weight stored (out, in) and one stored (in, out)."""
    lm = tiny_lm(family)
    keys = torch.randn(lm.arch.d_mlp, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projection: Any = lm.projection(1)
    weight = projection.weight.detach()
    out_in = weight.T if lm.arch.conv1d else weight
    activation = [sum(abs(float(keys[n, j])) for j in range(3)) for n in range(len(keys))]
    strength = [float(out_in[:, n].double().abs().sum()) for n in range(len(keys))]
    both = [a * b for a, b in zip(activation, strength, strict=True)]
    wanted: dict[Score, list[float]] = {"AS": activation, "WI": strength, "RS": both}
    for score, values in wanted.items():
        assert scores(problem(lm, keys), score).tolist() == pytest.approx(values, rel=1e-12)


def test_a_quantised_weight_has_no_score(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retcon.methods.ece_released.readable_weight", lambda *_: None)
    asked = problem(tiny_lm("llama"), torch.ones(112, 2, dtype=torch.float64))
    assert scores(asked, "AS").tolist() == [2.0] * 112
    with pytest.raises(RetconError, match="choose score AS"):
        scores(asked, "RS")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_neurons_are_sequential_memit_bit_for_bit(tiny_lm: Tiny, family: str) -> None:
    lm, edits = tiny_lm(family), tiny_edits(5)
    plain = MEMIT(MEMITConfig(**QUICK))
    made = [method.edit(lm, edits[3:], state=method.edit(lm, edits[:3])) for method in (plain, released(p=1.0))]
    for path, entry in made[0].entries.items():
        for name, tensor in entry.tensors().items():
            assert torch.equal(made[1].entries[path].tensors()[name], tensor), f"{name} of {path}"
    assert made[0].state.keys() == made[1].state.keys()
    assert all(torch.equal(kept, made[1].state[name]) for name, kept in made[0].state.items())
    assert "selection" not in made[1].info


@pytest.mark.parametrize("score", ["AS", "WI", "RS"])
def test_the_change_is_zero_off_the_chosen_and_least_on_them(tiny_lm: Tiny, score: Score) -> None:
    """On S the gradient of tr(Delta M Delta^T) + |Delta K - R|^2 is zero, off it Delta is; S holds just under p."""
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    first = released(score=score, p=0.6).edit(lm, edits[:3])
    method = Watched(score=score, p=0.6, rounds=1)
    made = method.edit(lm, edits[3:], state=first)
    assert len(method.seen) == 2
    for asked, change in method.seen:
        metric = torch.eye(112, dtype=torch.float64) + asked.past @ asked.past.T
        assert asked.past.shape[1] == 3
        slope = change @ metric + (change @ asked.keys - asked.residuals) @ asked.keys.T
        kept = made.state[f"cat.neurons.{asked.path}"]
        assert kept.shape == (112, 2)  # a column a batch
        chosen = kept[:, 1]
        assert not change[:, ~chosen].any()
        assert change[:, chosen].abs().sum(0).all()
        assert slope[:, chosen].norm() < 1e-10 * (asked.residuals @ asked.keys.T).norm()
        values = scores(asked, score).sort(descending=True).values.cumsum(0) / scores(asked, score).sum()
        assert int(chosen.sum()) == int((values <= 0.6).sum())
        entry = made.entries[asked.path]
        assert not entry.delta()[:, ~kept.any(1)].any()
    told = made.info["selection"]
    assert [item["layer"] for item in told] == [1, 2]
    assert all(0.5 < item["mass"] <= 0.6 for item in told)
    assert [item["neurons"] for item in told] == [
        int(made.state[f"cat.neurons.{lm.arch.mlp_out[layer]}"][:, 1].sum()) for layer in (1, 2)
    ]


def test_one_neuron_is_kept_at_least(tiny_lm: Tiny) -> None:
    made = released(p=1e-9).edit(tiny_lm("llama"), tiny_edits(2))
    assert [item["neurons"] for item in made.info["selection"]] == [1, 1]
    assert all(int((entry.delta().abs().sum(0) > 0).sum()) == 1 for entry in made.entries.values())


def test_later_rounds_use_the_same_neurons(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    made = released(p=0.5, rounds=3, stop=0.0, stop_probability=None).edit(lm, tiny_edits(2))
    for path, entry in made.entries.items():
        assert entry.rank > 2  # more than one round was written
        assert made.state[f"cat.neurons.{path}"].shape[1] == 1
        assert not entry.delta()[:, ~made.state[f"cat.neurons.{path}"][:, 0]].any()


def test_sums_of_patches_keep_the_neurons_of_both(tiny_lm: Tiny) -> None:
    lm, edits, method = tiny_lm("llama"), tiny_edits(4), released(p=0.5)
    both = method.edit(lm, edits[:2]) + method.edit(lm, edits[2:])
    assert all(kept.shape[1] == 2 for name, kept in both.state.items() if name.startswith("cat.neurons."))
    assert [item["layer"] for item in both.info["selection"]] == [1, 2, 1, 2]
    loaded = replace(both, info={})
    assert method.edit(lm, tiny_edits(5)[4:], state=loaded).contains
