"""Facts that meet again: several of one subject, one that overwrites another, batches that leave each other alone."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import solve
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods import METHODS, family
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import Trial, quick

TWO: dict[str, Any] = {"layers": (1, 2), "ridge": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "memit": TWO,
    "alphaedit": {"layers": (1, 2), "l2": 0.1},
    "emmet": {"weight": 1.0},
    "pmet": TWO,
    "eamet": TWO,
    "ece": TWO,
    "ece-released": TWO,
    "memit-blue": TWO,
    "alphaedit-blue": {"layers": (1, 2), "l2": 0.1},
    "pmet-blue": TWO,
    "rome": {},
}
"""With little in the way of a write."""
# ROME writes one fact after the other and remembers no key, so the last one stands, in part at the others' cost.
methods = pytest.mark.parametrize("name", [name for name in OPTIONS if name != "rome"])

BLUE = ("memit-blue", "alphaedit-blue", "pmet-blue")

OLD = Edit("{} is located in the city of", "Ada Lovelace", "Paris")
NEW = Edit("{} is located in the city of", "Ada Lovelace", "Lima")
UNRELATED = tiny_edits(12)[5:8]


@cache
def lm(family: str = "llama") -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


def edited(name: str, edits: list[Edit], model: LM, state: Patch | None = None, **more: Any) -> Patch:
    return quick(name, **{**OPTIONS[name], "steps": 16, "clamp": 3.0, **more}).edit(model, edits, state=state)


def likelihoods(model: LM, edits: list[Edit], *patches: Patch) -> Tensor:
    trial = Trial(quick("memit"), model, tuple(edits), Path())
    if not patches:
        return trial.likelihoods()
    with patches[0].on(model.model):
        return trial.likelihoods()


# --------------------------------------------------------------------------------- several facts of one subject

SEVERAL = [
    Edit("The mother tongue of {} is", "Ada Lovelace", "French"),
    Edit("People say that {} plays the sport of", "Ada Lovelace", "chess"),
    Edit("{} was made by", "Ada Lovelace", "Nokia"),
]
ONE_KEY = [OLD, SEVERAL[2]]
"""Both prompts begin with the subject."""


@methods
def test_several_facts_of_one_subject_all_become_likelier(name: str) -> None:
    """What stands before the subject tells their keys apart."""
    rounds = 2 if name == "eamet" else 1  # its first makes shifts alike, at a fact's cost; its second does not
    patch = edited(name, SEVERAL, lm(), rounds=rounds)
    before, after = likelihoods(lm(), SEVERAL), likelihoods(lm(), SEVERAL, patch)
    assert (after > before + 0.2).all(), f"from {before} to {after}"
    assert patch.info["shared_keys"] == 0


@methods
def test_facts_that_share_a_key_are_told_of_and_end_between_their_targets(name: str) -> None:
    """A prompt that begins with its subject has the same key whatever follows."""
    with pytest.warns(RetconWarning, match="1 pairs of facts share a key"):
        patch = edited(name, ONE_KEY, lm())
    before, after = likelihoods(lm(), ONE_KEY), likelihoods(lm(), ONE_KEY, patch)
    assert (after > before + 0.1).all(), f"from {before} to {after}"
    assert patch.info["shared_keys"] == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_several_facts_of_one_subject_rome_writes_each_and_the_last_stands(family: str) -> None:
    """Each is likelier once it is written; what comes after it moves it again, as no key is held."""
    model, state = lm(family), None
    for i in range(len(SEVERAL)):
        before = likelihoods(model, SEVERAL, *([] if state is None else [state]))
        state = edited("rome", SEVERAL[i : i + 1], model, state)
        after = likelihoods(model, SEVERAL, state)
        assert after[i] > before[i] + 0.4, f"fact {i} from {before} to {after}"
    assert (after[:2] - before[:2]).abs().max() > 0.1
    together = edited("rome", SEVERAL, model)
    assert likelihoods(model, SEVERAL, together).tolist() == pytest.approx(after.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_facts_that_share_a_key_rome_keeps_the_last_alone(family: str) -> None:
    """Each has the key to itself when its turn comes, so there is nothing to be told of."""
    model = lm(family)
    alone, both = (edited("rome", ONE_KEY[:n], model) for n in (1, 2))  # a warning would be an error here
    base, first, last = (likelihoods(model, ONE_KEY, *patches) for patches in ((), (alone,), (both,)))
    assert first[0] > base[0] + 1
    assert last[1] > base[1] + 1
    assert last[0] < first[0] - 1


# -------------------------------------------------------------------------------------- edits that are overwritten


@pytest.mark.parametrize(
    ("name", "family", "rounds"),
    [
        ("memit", "gpt2", 1),
        ("alphaedit", "gpt2", 1),
        ("emmet", "gpt2", 1),
        ("emmet", "llama", 1),
        ("memit", "llama", 2),  # over two layers of this model, one round brings the two targets level at best
        ("alphaedit", "llama", 2),
        *((name, "gpt2", 1) for name in ("pmet", "eamet", "ece", "ece-released", *BLUE, "rome")),
        *((name, "llama", 2) for name in ("pmet", "eamet", "ece", "ece-released", "pmet-blue")),
        *((name, "llama", 1) for name in ("memit-blue", "alphaedit-blue", "rome")),  # each layer is written in full
    ],
)
def test_an_edit_that_overwrites_an_earlier_one_wins(name: str, family: str, rounds: int) -> None:
    model = lm(family)
    first = edited(name, [OLD], model, rounds=rounds)
    both = edited(name, [NEW], model, first, rounds=rounds)
    old, new = likelihoods(model, [OLD, NEW], both)
    old_before, new_before = likelihoods(model, [OLD, NEW], first)
    told = f"old {old_before} to {old}, new {new_before} to {new}"
    assert new > new_before + 0.5, told
    assert old < old_before - 0.5, told
    assert new > old, told


def test_a_key_that_is_written_again_is_not_held() -> None:
    """Else the ridge would hold on to the old target as much as it wants the new one, and end half-way."""
    model, path = lm(), lm().arch.mlp_out[1]
    first = edited("memit", [OLD, *UNRELATED], model, layers=(1,))
    past = family.past_keys(first, path, model)
    assert past.shape == (model.arch.d_mlp, 4)
    again = family.still_held(past, torch.stack([3 * past[:, 2], past[:, 0] + past[:, 1]]))
    assert again.tolist() == [True, True, False, True]
    none = family.past_keys(None, path, model)
    assert none.shape == (model.arch.d_mlp, 0)
    assert family.still_held(none, past.T).shape == (0,)
    full = torch.eye(model.arch.d_mlp, dtype=torch.float64)  # columns that are no facts any more
    assert family.still_held(full, full[:3]).all()


# ------------------------------------------------------------------------------------------- batches in sequence


@methods
def test_a_later_batch_leaves_an_earlier_fact_standing(name: str) -> None:
    first = edited(name, [OLD], lm())
    later = edited(name, UNRELATED, lm(), first)
    base, then, now = (likelihoods(lm(), [OLD], *patches) for patches in ((), (first,), (later,)))
    assert then > base + 1
    assert now > base + 0.7 * (then - base)
    after = likelihoods(lm(), UNRELATED, later)
    assert after.mean() > likelihoods(lm(), UNRELATED).mean() + 0.3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@methods
def test_a_later_batch_writes_nothing_where_an_earlier_one_read(name: str, family: str) -> None:
    """Its change is next to zero at the earlier key; without the memory it is not."""
    light: dict[str, Any] = {key: 1e-3 for key in ("ridge", "l2") if key in OPTIONS[name]} or {"weight": 1e-2}
    model = lm(family)
    first = edited(name, [OLD], model, **light)
    forgetful = Patch(first.entries, first.base, first.history, {}, first.info, first.contains)
    path = next(iter(first.entries))  # the lowest layer, whose keys do not move
    key = first.state[f"cat.keys.{path}"][:, 0]

    def at_the_key(state: Patch) -> float:
        later = edited(name, UNRELATED, model, state, **light)
        change = later.entries[path].delta() - first.entries[path].delta()
        return float((change @ key).norm() / (change.norm() * key.norm()))

    assert at_the_key(first) < 0.02 * at_the_key(forgetful)


def test_the_memory_is_at_most_as_wide_as_a_key() -> None:
    """Beyond that, past keys are kept as fewer columns with the same sum of products."""
    model = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer())
    path = model.arch.mlp_out[1]
    options = {"layers": (1,), "steps": 1}
    state, sums = None, torch.zeros(112, 112)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetconWarning)  # of keys shared within a batch
        for start in range(0, 120, 40):
            batch = tiny_edits(40)
            alone = quick("memit", **options).edit(model, batch)
            state = quick("memit", **options).edit(model, batch, state=state)
            keys = alone.state[f"cat.keys.{path}"]
            assert keys.shape == (112, 40)
            sums += keys @ keys.T
            assert state.state[f"cat.keys.{path}"].shape == (112, min(start + 40, 112))
    assert state is not None
    kept = state.state[f"cat.keys.{path}"]
    assert (kept @ kept.T - sums).norm() < 1e-4 * sums.norm()


# ------------------------------------------------------------------------------------------------- what is shared


@pytest.mark.parametrize("name", METHODS)
def test_a_target_that_is_met_is_not_written(name: str) -> None:
    """Every fact stops before its first update, and there is no residual."""
    kind = METHODS[name]
    if "stop" not in kind.Config.__dataclass_fields__ or "earliest_stop" in kind.Config.__dataclass_fields__:
        pytest.skip("its facts do not stop at a loss, or never as they started")
    if getattr(kind, "routes", False):
        pytest.skip("it keeps a memory of every fact, and stops only where all tokens are the argmax too")
    patch = quick(name, stop=100.0).edit(lm(), tiny_edits(2))
    assert all(fact["evaluations"] == 1 for fact in patch.info["facts"])
    assert max(float(entry.delta().norm()) for entry in patch.entries.values()) < 1e-4


@pytest.mark.parametrize(
    ("depth", "first", "last"),
    [(1, 0, 0), (2, 1, 1), (4, 1, 1), (12, 1, 3), (30, 1, 9), (48, 2, 15)],
)
def test_the_window_ends_at_a_third_of_the_depth(depth: int, first: int, last: int) -> None:
    class Shallow:
        class arch:  # noqa: N801
            n_layers = depth

    model: Any = Shallow()
    assert family.edited_layers(model, None) == tuple(range(first, last + 1))
    assert family.edited_layers(model, None, width=5) == tuple(range(max(first, last - 4), last + 1))


@pytest.mark.parametrize("layers", [(), (4,), (-1,), (2, 1), (1, 1)])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(RetconError, match="name some of 0 to 3 in rising order"):
        family.edited_layers(lm(), layers)


def test_without_statistics_the_metric_is_the_identity_and_the_past() -> None:
    past = torch.randn(112, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = torch.zeros(112, 1, dtype=torch.float64)
    problem = family.Problem(lm(), 1, "", some, some, None, None, past, (), ())  # type: ignore[arg-type]
    found = family.metric(problem, 4.0)
    assert isinstance(found, solve.Metric)
    wanted = 4 * torch.eye(112, dtype=torch.float64) + past @ past.T
    assert (found.lower @ found.lower.T - wanted).norm() < 1e-12 * wanted.norm()
