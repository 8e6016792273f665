"""The engine gives the numbers that a plain dense fp64 computation recorded (record.py): no maths changes by chance."""

import importlib.util
import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import solve, templates, values
from retcon.lm import LM
from retcon.methods import (
    EAMET,
    EMMET,
    MEMIT,
    ROME,
    AlphaEdit,
    AlphaEditConfig,
    EAMETConfig,
    EMMETConfig,
    MEMITConfig,
    ROMEConfig,
    UltraEdit,
    UltraEditConfig,
    method,
)
from retcon.methods.alignment import Alignment, Terms
from retcon.methods.family import Problem
from retcon.patch import Patch
from retcon.sweep import Sweep
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.reference import PlainSearch
from retcon.values import SearchConfig, Step


def _record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record: Any = _record()
NUMBERS: dict[str, Any] = json.loads(record.FILE.read_text(encoding="utf-8"))
WITHIN: dict[str, float] = NUMBERS["tolerances"]
families = pytest.mark.parametrize("family", record.FAMILIES)


def near(name: str, found: float, wanted: float) -> None:
    """Within the recorded tolerance of that name, as a share of the number."""
    assert found == pytest.approx(wanted, rel=WITHIN[name], abs=1e-300), name


def near_entries(name: str, found: Tensor, wanted: list[float], size: float) -> None:
    """The recorded entries of a vector, each within the tolerance of that name, as a share of a size."""
    assert record.few(found) == pytest.approx(wanted, rel=0, abs=WITHIN[name] * size), name


OFF: dict[str, Any] = {"relax": False, "earliest_stop": 0}
"""Options of the search that were not recorded, at the values at which they change nothing."""


def descent(optimizer: str) -> dict[str, Any]:
    """All options of the search as recorded; none is left to a default, which may be tuned."""
    lr, momentum = record.RATES[optimizer]
    return {
        "optimizer": optimizer,
        "steps": record.STEPS,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": record.WEIGHT_DECAY,
        "kl": record.KL,
        "clamp": record.CLAMP,
        "stop": record.STOP,
        "stop_probability": None,
        "precision": "float32",
    }


@cache
def lm(family: str) -> LM:
    return LM.wrap(tiny_model(family, dtype=torch.float64), tiny_tokenizer("fast"))


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a method that make it the recorded computation: its templates, its text for statistics."""
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(templates, "written", lambda *_args, **_named: record.TEMPLATES[1:])
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{line}\n" for line in record.TEXT), encoding="utf-8")
    return descent("adam") | {"templates": len(record.TEMPLATES) - 1, "statistics": str(text), "rounds": 1}


def test_the_settings_are_those_recorded() -> None:
    assert set(NUMBERS) == {"tolerances", *record.FAMILIES}
    assert record.TOLERANCES == WITHIN
    assert all(lm(family).arch.write_gain == record.GAIN[family] for family in record.FAMILIES)
    assert all(lm(family).arch.mlp_out[2] == record.Plain(family).path(2) for family in record.FAMILIES)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "whole"])
@pytest.mark.parametrize("optimizer", record.RATES)
@pytest.mark.parametrize("site", ["layer_out", "module_out"])
@families
def test_the_search(family: str, site: Any, optimizer: str, fast: bool) -> None:
    config = SearchConfig(layer=2, site=site, **descent(optimizer), **OFF)
    found = values.search(lm(family), tiny_edits(record.FACTS), config, record.TEMPLATES, fast=fast)
    for number, row in enumerate(NUMBERS[family]["search"][site]):
        wanted = row[optimizer]
        near("base_norm", float(found.base[number].norm()), row["base_norm"])
        near("delta_norm", float(found.delta[number].norm()), wanted["delta_norm"])
        near("delta_first", float(found.delta[number, 0]), wanted["delta_first"])
        near("last_loss", float(found.loss[number]), wanted["last_loss"])


@pytest.mark.parametrize("site", ["layer_out", "module_out"])
@families
def test_loss_and_gradient_at_a_fixed_shift(family: str, site: Any) -> None:
    """Of the plain search, which the fast one is held to in its own tests."""
    config = SearchConfig(layer=2, site=site, **descent("adam"), **OFF)
    for number, edit in enumerate(tiny_edits(record.FACTS)):
        plain = PlainSearch(lm(family), edit, config, record.TEMPLATES)
        loss, gradient = plain.loss_and_gradient(record.fixed_delta(plain.base, number))
        wanted = NUMBERS[family]["search"][site][number]
        near("fixed_loss", float(loss), wanted["fixed_loss"])
        near("fixed_gradient_norm", float(gradient.norm()), wanted["fixed_gradient_norm"])


def expect_change(wanted: dict[str, Any], change: Tensor, kind: str = "change") -> None:
    """A change has the norm, and sends the probe to the entries, that were recorded; by the tolerances of its kind."""
    near(f"{kind}_norm", float(change.norm()), wanted["norm"])
    near_entries(f"{kind}_product", change @ record.probe(change.shape[1]), wanted["product"], wanted["norm"])


def expect(family: str, name: str, patch: Patch, before: Patch | None = None, kind: str = "change") -> None:
    """What a patch adds to an earlier one, or to nothing, is what was recorded."""
    for layer in record.LAYERS:
        path = lm(family).arch.mlp_out[layer]
        change = patch.entries[path].delta().double()
        if before is not None:
            change -= before.entries[path].delta().double()
        expect_change(NUMBERS[family][f"{name}_layer_{layer}"], change, kind)


@pytest.mark.parametrize("name", ["memit", "memit-blue", "pmet"])
@families
def test_the_methods_of_one_ridge(family: str, name: str, options: dict[str, Any]) -> None:
    """MEMIT spread over two layers, BLUE on it, and PMET with its two sites and its shares."""
    own = {"relax": False} if name == "pmet" else {}
    patch = method(name, layers=record.LAYERS, ridge=record.RIDGE, **options, **own).edit(
        lm(family), tiny_edits(record.FACTS)
    )
    expect(family, name.replace("-", "_"), patch)


class Restricted(MEMIT):
    """MEMIT on some coordinates of a key alone."""

    def rule(self, problem: Problem) -> solve.Factors:
        assert problem.moments is not None
        matrix = self.config.ridge * solve.shrunk(problem.moments.second, problem.moments.count)
        return solve.restricted_ridge(problem.keys, problem.residuals, matrix, torch.tensor(record.CHOSEN))


@families
def test_a_restricted_solve(family: str, options: dict[str, Any]) -> None:
    config = MEMITConfig(layers=record.LAYERS, ridge=record.RIDGE, **options)
    expect(family, "restricted", Restricted(config).edit(lm(family), tiny_edits(record.FACTS)))


@pytest.mark.parametrize(("name", "mu"), [("emmet", record.MU), ("emmet_exact", 0.0)])
@families
def test_emmet_with_a_regulariser_and_without(family: str, name: str, mu: float, options: dict[str, Any]) -> None:
    config = EMMETConfig(layers=record.LAYERS, weight=record.WEIGHT, regulariser=mu, **options)
    expect(family, name, EMMET(config).edit(lm(family), tiny_edits(record.FACTS)))


@families
def test_alphaedit_in_two_batches(family: str, options: dict[str, Any]) -> None:
    config = AlphaEditConfig(
        layers=record.LAYERS, l2=record.L2, null_space="energy", threshold=record.ENERGY, few_tokens=True, **options
    )
    edits = tiny_edits(record.FACTS)
    first = AlphaEdit(config).edit(lm(family), edits[:-1])
    for layer in record.LAYERS:
        free = first.info["null_space"][lm(family).arch.mlp_out[layer]]["directions"]
        near("alphaedit_free", free, NUMBERS[family][f"alphaedit_free_{layer}"])
    expect(family, "alphaedit", first)
    both = AlphaEdit(config).edit(lm(family), edits[-1:], state=first)
    expect(family, "alphaedit_second", both, first)


@pytest.mark.parametrize("variant", ["rome", "r-rome"])
@families
def test_rome_in_both_forms(family: str, variant: Any, options: dict[str, Any]) -> None:
    patch = ROME(ROMEConfig(layers=(2,), variant=variant, bare_weight=None, **options)).edit(lm(family), tiny_edits(1))
    expect_change(
        NUMBERS[family][variant.replace("-", "_")], patch.entries[lm(family).arch.mlp_out[2]].delta().double()
    )


@families
def test_memit_in_two_batches(family: str, options: dict[str, Any]) -> None:
    """The second holds the first one's keys."""
    config = MEMITConfig(layers=record.LAYERS, ridge=record.RIDGE, **options)
    edits = tiny_edits(record.FACTS)
    first = MEMIT(config).edit(lm(family), edits[:-1])
    expect(family, "memit_first", first)
    expect(family, "memit_second", MEMIT(config).edit(lm(family), edits[-1:], state=first), first, "second")


@pytest.mark.parametrize("form", record.FORMS)
@families
def test_the_penalty_of_eamet_at_fixed_shifts(family: str, form: str) -> None:
    """With the engine's own keys; of a single fact before it, the divergence says nothing."""
    model, layer = lm(family), record.LAYERS[-1]
    shifts = record.fixed_shifts(model.arch.d_model)
    with Sweep(model, tiny_edits(record.MORE), record.TEMPLATES, [layer]) as sweep:
        keys = sweep.read(layer, layer).keys
    for fact in record.LOOKING:
        alignment = Alignment(keys, model.arch.d_model, Terms(**{**record.ALIGNED, **record.FORMS[form]}))
        alignment.keep(range(fact), shifts[:fact])
        alignment.begin([fact])
        shift = shifts[fact : fact + 1].clone().requires_grad_()
        value = alignment(Step(torch.tensor([fact]), shift, torch.ones_like(shift), 0))
        (gradient,) = torch.autograd.grad(value.sum(), shift)
        wanted = NUMBERS[family]["penalties"][f"{form}_{fact}"]
        near("penalty", float(value.detach()), wanted["penalty"])
        near_entries("gradient", gradient[0], wanted["gradient"], 1.0)


@families
def test_eamet_one_fact_after_the_other(family: str, options: dict[str, Any]) -> None:
    own: dict[str, Any] = {
        **record.ALIGNED, **record.FORMS["code"], "mode": "blocks", "block": 1, "init": "key", "sink": 1e9,
        "clamp_to": "key", "clamp": record.LENGTHS, "earliest_stop": 1,
    }  # fmt: skip
    config = EAMETConfig(layers=record.LAYERS, ridge=record.RIDGE, **{**options, **own})
    expect(family, "eamet", EAMET(config).edit(lm(family), tiny_edits(record.FACTS)))


@pytest.mark.parametrize("name", record.TURNS)
@families
def test_ultraedit_in_two_turns(family: str, name: str) -> None:
    """As published, and with a sum over tokens and a prior."""
    own: dict[str, Any] = {"sites": ("mlp_in", "mlp_out"), "released_var": False, "precision": "float32"}
    config = UltraEditConfig(layers=record.LAYERS, **record.ULTRA, **record.TURNS[name], **own)
    patch = UltraEdit(config).edit(lm(family), tiny_edits(record.MORE))
    wanted = NUMBERS[family][name]
    assert patch.entries.keys() == wanted.keys()
    for path, numbers in wanted.items():
        expect_change(numbers, patch.entries[path].delta().double(), "ultraedit")


@families
def test_the_recorded_numbers_are_those_of_the_script(family: str) -> None:
    """A change of the tiny models or of transformers shows here first, and then no engine is to blame."""
    plain = record.Plain(family)
    found = plain.seen(plain.block(2), *plain.row(tiny_edits(1)[0], "")).norm().item()
    near("script", found, NUMBERS[family]["search"]["layer_out"][0]["base_norm"])


def test_all_options_of_the_search_are_pinned() -> None:
    """A new one goes to OFF."""
    assert {field.name for field in fields(SearchConfig)} == {*descent("adam"), *OFF, "layer", "site"}
