"""The shared start: it goes down the members' mean loss, leaves a lone fact where it would be, and is found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from retcon import values
from retcon.lm import LM
from retcon.methods import warm
from retcon.methods.ece import ECE, ECEConfig
from retcon.requests import Edit
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.values import SearchConfig

CONFIG = SearchConfig(
    layer=1, optimizer="normalised", lr=0.1, momentum=0.5, steps=7, kl=0.05, weight_decay=0.2, stop=0.0
)
TEXTS = ("", "The. ")


@pytest.fixture(name="lm", scope="module")
def _lm() -> LM:
    return LM.wrap(tiny_model("llama", dtype=torch.float64), tiny_tokenizer())


def test_one_fact_alone_starts_as_its_own_search_does(lm: LM) -> None:
    """With one member the mean is its own loss, so t_0 steps are the first t_0 of the plain search."""
    edits = tiny_edits(1)
    shared = warm.common_shift(lm, edits, CONFIG, TEXTS, 3)
    plain = values.search(lm, edits, SearchConfig(**_dict(steps=5)), TEXTS).delta[0]
    assert (warm.common_shift(lm, edits, CONFIG, TEXTS, 4) - plain).norm() < 1e-6 * plain.norm()
    assert (shared - plain).norm() > 1e-2 * plain.norm()


def _dict(**more: Any) -> dict[str, Any]:
    return {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__} | more


def test_it_goes_down_the_mean_loss(lm: LM) -> None:
    """The mean over the members, by the search's own account, falls; and the shift is as long as it may be."""
    edits = [Edit(prompt="{} is in", subject=name, target="Rome") for name in ("Big Ben", "the Blue Tower", "iPhone 5")]

    def mean(steps: int) -> float:
        shift = warm.common_shift(lm, edits, CONFIG, TEXTS, steps)
        there = SearchConfig(**_dict(steps=1, clamp=9.0))
        return float(values.search(lm, edits, there, TEXTS, start=lambda base: shift.expand_as(base)).loss.mean())

    losses = [mean(steps) for steps in (0, 1, 3, 5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1
    short = warm.common_shift(lm, edits, SearchConfig(**_dict(clamp=0.15)), TEXTS, 4)
    norms = values.search(lm, edits, SearchConfig(**_dict(steps=1)), TEXTS).base.norm(dim=1)
    assert float(short.norm()) == pytest.approx(0.15 * float(norms.mean()), rel=1e-6)


def test_no_shared_step_is_the_plain_search(lm: LM) -> None:
    edits = tiny_edits(3)
    found, cached = warm.find(lm, edits, CONFIG, TEXTS, [], 0)
    plain = values.search(lm, edits, CONFIG, TEXTS)
    assert cached == 0
    assert torch.equal(found.delta, plain.delta)
    assert torch.equal(found.evaluations, plain.evaluations)


def test_shared_steps_count_and_are_found_again(lm: LM, tmp_path: Path) -> None:
    edits, store = tiny_edits(3), Store(tmp_path / "targets.sqlite")
    found, cached = warm.find(lm, edits, CONFIG, TEXTS, [store], 2)
    again, kept = warm.find(lm, edits, CONFIG, TEXTS, [store], 2)
    assert (cached, kept) == (0, 3)
    assert torch.equal(found.delta, again.delta)
    assert found.evaluations.tolist() == [6, 6, 6]  # two together and four alone: one less than `steps`, as ever
    plain = values.search(lm, edits, CONFIG, TEXTS)
    assert (found.delta - plain.delta).norm() > 1e-3 * plain.delta.norm()
    for other in ((edits[:2], CONFIG, 2), (edits, CONFIG, 3), (edits, SearchConfig(**_dict(lr=0.2)), 2)):
        assert warm.find(lm, other[0], other[1], TEXTS, [store], other[2])[1] == 0


def test_the_method_takes_it_cluster_by_cluster(lm: LM, tmp_path: Path) -> None:
    options: dict[str, Any] = {"statistics": "none", "templates": 0, "steps": 5, "layers": (1, 2), "ridge": 1.0}
    options |= {"precision": "float32", "rounds": 1, "n_clusters": 2, "stop": 0.0, "stop_probability": None}
    edits, store = tiny_edits(4), Store(tmp_path / "targets.sqlite")
    cold = ECE(ECEConfig(**options)).edit(lm, edits)
    method = ECE(ECEConfig(**options, warm_start=2))
    first, again = (method.edit(lm, edits, stores=[store]) for _ in range(2))
    assert difference(cold, first) > 1e-3
    assert (first.info["targets_cached"], again.info["targets_cached"]) == (0, 4)
    assert difference(first, again) == 0
    assert first.info["passes"] == {"single": 16, "clusters": 8, "together": 4, "made": 8}
    assert first.info["labels"] == cold.info["labels"]
