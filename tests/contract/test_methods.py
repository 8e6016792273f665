"""Every row of METHODS keeps the contract on every family, or declares it unsupported and refuses it."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from retcon.lm import LM
from retcon.methods import METHODS, Method
from retcon.testing import FAMILIES, check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import Check, Trial, checks, declared_unsupported, knowing, quick, replaced

FAST = ("llama", "gpt2", "gptj", "gemma2")
"""Plain; Conv1D; tuple blocks that run in parallel; a norm after the MLP."""

THIN = {"emmet", "alphaedit", "memit-blue", "alphaedit-blue", "pmet-blue", "ft-l", "ft-m", "npo", "ike"}
"""Methods that differ from another by a few lines which know nothing of families: the fast checks take the first two
of `FAST`, the slow ones all families."""

THINNER = {"ga", "graddiff", "kl", "idk", "dpo", "simnpo", "rmu", "undial", "wga", "satimp", "ceu"}
"""Objectives that differ from `npo` by a formula alone, which is tested as such: the slow checks take all families."""

TWO_LAYERS = {"layers": (1, 2)}
OPTIONS: dict[str, dict[str, Any]] = dict.fromkeys(
    ("memit", "pmet", "memit-blue", "pmet-blue", "alphaedit-blue"), TWO_LAYERS
) | {"wise": {"steps": 20, "lr": 0.3}}
"""Options of a method beside the quick ones: its own, where one layer, or few steps, would show too little of it."""


def on(families: tuple[str, ...], fast: Callable[[str], tuple[str, ...]]) -> list[Any]:
    """Every method on every one of the families; those that are not fast for a method are marked as slow."""
    slow, together = pytest.mark.slow, pytest.mark.xdist_group  # one process makes a trial, and makes it once
    return [
        pytest.param(name, family, marks=[together(f"{name}-{family}"), *(() if family in fast(name) else (slow,))])
        for name in METHODS
        for family in families
    ]


def fast_families(name: str) -> tuple[str, ...]:
    return () if name in THINNER else FAST[:2] if name in THIN else FAST


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cache_folder = tmp_path / "cache"
    monkeypatch.setenv("RETCON_CACHE", str(cache_folder))
    yield
    assert not cache_folder.exists(), "a method that is given no store wrote to the cache"


def method(name: str) -> Method:
    return quick(name, **OPTIONS.get(name, {}))


@cache
def trial(name: str, family: str) -> Trial:
    """One trial for all checks; every one of them leaves its model as it was."""
    lm, edits, rule = LM.wrap(tiny_model(family), tiny_tokenizer()), tuple(tiny_edits(3)), method(name)
    return Trial(rule, knowing(rule, lm, edits), edits, Path())


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "family"), on(FAMILIES, fast_families))
def test_contract(name: str, family: str, check: Check, tmp_path: Path) -> None:
    shared = trial(name, family)
    if declared_unsupported(shared.method, shared.lm) is not None:
        check_method(shared.method, shared.lm.model, shared.lm.tokenizer)
        return
    folder = tmp_path / "trial"
    folder.mkdir()
    _ = shared.patch, shared.first
    check(replaced(shared, folder))


@pytest.mark.parametrize(("name", "family"), on(FAST[:2], lambda name: () if name in THIN | THINNER else FAST[1:]))
def test_the_whole_contract_by_its_public_name_and_with_tied_embeddings(name: str, family: str) -> None:
    model: PreTrainedModel = tiny_model(family, tie=True)
    assert model.config.tie_word_embeddings
    check_method(method(name), model, tiny_tokenizer("bos"))
