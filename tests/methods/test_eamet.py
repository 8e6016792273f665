"""EAMET: MEMIT where it has nothing to add, each fact after those before it, a run that goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import memory, templates, tokens, values
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.alphaedit import AlphaEdit
from retcon.methods.eamet import EAMET, EAMETConfig
from retcon.methods.family import search_config
from retcon.methods.memit import MEMIT
from retcon.requests import Edit
from retcon.sweep import Sweep
from retcon.targets import Store
from retcon.testing import check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import kept_targets_change_nothing, the_model_is_untouched
from retcon.values import Found, Step

Tiny = Callable[..., LM]

QUICK: dict[str, Any] = {
    "statistics": "none", "steps": 4, "precision": "float32", "ridge": 1.0, "clamp_to": "key", "clamp": 2.0
}  # fmt: skip
"""Few steps, and shifts as long as published."""
TEXTS = ("", "The. ")
LAYER = 1
PLAIN: dict[str, Any] = {"align_kl": 0.0, "align_mse": 0.0, "init": "zero", "clamp_to": "state", "clamp": 0.75}
"""Options that leave nothing of EAMET."""


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search hands back its memory, which takes longer than it takes to find one fact on a tiny model."""
    monkeypatch.setattr(memory, "give_back", lambda: None)


def found(lm: LM, edits: Sequence[Edit], stores: Sequence[Store] = (), **options: Any) -> Found:
    """The targets of the method by itself, and that alone."""
    return cached(lm, edits, stores, **options)[0]


def cached(lm: LM, edits: Sequence[Edit], stores: Sequence[Store] = (), **options: Any) -> tuple[Found, int]:
    method = EAMET(EAMETConfig(**QUICK | options))
    return method.find(lm, edits, search_config(method.config, LAYER, "layer_out"), TEXTS, stores, ())


def keys_of(lm: LM, edits: Sequence[Edit]) -> Tensor:
    with Sweep(lm, edits, TEXTS, [LAYER]) as sweep:
        return sweep.read(LAYER, LAYER).keys


def cosine(one: Tensor, two: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, two, 0).item()


def same(one: Found, two: Found, tolerance: float = 0.0) -> None:
    for name in ("base", "delta", "loss"):
        assert torch.allclose(getattr(one, name), getattr(two, name), rtol=tolerance, atol=tolerance), name


# ------------------------------------------------------------------------------------- what it is made of


@pytest.mark.parametrize(("family", "solver"), [("llama", MEMIT), ("gpt2", AlphaEdit)])
def test_without_alignment_it_is_its_solver(tiny_lm: Tiny, family: str, solver: Any) -> None:
    """Bit for bit: with no weights, a start at zero, the solver's own clamp, stops and rounds."""
    lm, edits = tiny_lm(family), tiny_edits(5)
    host = solver.Config(statistics="none", steps=6, rounds=2)
    shared = {item.name: getattr(host, item.name) for item in fields(host)}
    plain = EAMETConfig(**shared | PLAIN, solver=solver.name, block=50, earliest_stop=0)
    one, other = solver(host).edit(lm, edits), EAMET(plain).edit(lm, edits)
    for path, entry in one.entries.items():
        for name, tensor in entry.tensors().items():
            assert torch.equal(tensor, other.entries[path].tensors()[name]), (path, name)


def test_one_after_the_other_is_what_the_paper_says(tiny_lm: Tiny) -> None:
    """Against a loop over facts whose penalty compares the shift with each earlier one in turn."""
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(5)
    config = EAMETConfig(**QUICK)
    keys = keys_of(lm, edits)
    done: list[Tensor] = []
    for i, edit in enumerate(edits):
        near = [cosine(keys[i], keys[j]) for j in range(i)]
        length = keys[i].norm()

        def penalty(step: Step, near: list[float] = near) -> Tensor:
            if not near:
                return step.delta.new_zeros(1)
            wanted = torch.tensor(near, dtype=torch.float64)
            alike = torch.stack([torch.cosine_similarity(step.delta[0], other, 0) for other in done])
            p, q = (wanted / 0.07).softmax(0), (alike / 0.07).softmax(0)
            divergence = (p * ((p + 1e-8) / (q + 1e-8)).log()).sum()
            return (2 * divergence + 8 * (p * (wanted - alike).square()).sum())[None]

        def start(base: Tensor, length: Tensor = length) -> Tensor:
            begun: Tensor = length * base / base.norm()
            return begun

        def radius(_base: Tensor, length: Tensor = length) -> Tensor:
            return 2 * length[None]

        where = search_config(config, LAYER, "layer_out")
        target = values.search(lm, [edit], where, TEXTS, penalty=penalty, start=start, radius=radius)
        done.append(target.delta[0])
    assert torch.allclose(found(lm, edits).delta, torch.stack(done), rtol=1e-6, atol=1e-6)


def test_facts_with_one_key_end_with_one_direction(tiny_lm: Tiny) -> None:
    lm, (first, *_) = tiny_lm("llama"), tiny_edits(1)
    edits = [first, replace(first, target="Cairo"), replace(first, target="soccer")]
    loose = found(lm, edits, steps=12, align_kl=0.0, align_mse=0.0).delta
    tight = found(lm, edits, steps=12, align_mse=1e4).delta
    for i in (1, 2):
        assert cosine(loose[0], loose[i]) < 0.9
        assert cosine(tight[0], tight[i]) > 0.99


def test_the_targets_are_less_misaligned(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(9)
    free = {name: PLAIN[name] for name in ("init", "clamp_to", "clamp")}
    apart = [
        EAMET(EAMETConfig(**QUICK | options, templates=1)).edit(lm, edits).info["misalignment"]["mean"]
        for options in (PLAIN, free, free | {"block": 4})
    ]
    assert max(apart[1:]) < 0.7 * apart[0]


# ---------------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize("block", [1, 3])
def test_a_later_fact_changes_no_earlier_one(tiny_lm: Tiny, block: int) -> None:
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(6)
    all_of_them = found(lm, edits, block=block).delta
    for n in (1, 4, 5):
        assert torch.allclose(found(lm, edits[:n], block=block).delta, all_of_them[:n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("mode", ["blocks", "two_pass"])
def test_another_fact_in_its_place_is_felt_by_those_after_it_alone(tiny_lm: Tiny, block: int, mode: Any) -> None:
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(6)
    other = [*edits[:3], replace(edits[3], target="chess"), *edits[4:]]
    one, two = (found(lm, them, block=block, mode=mode).delta for them in (edits, other))
    gap = (one - two).norm(dim=1) / one.norm(dim=1)
    assert gap[:3].max() < 1e-6
    assert gap[3:].min() > 1e-4


def test_a_block_differs_from_one_after_the_other(tiny_lm: Tiny) -> None:
    """Its members see one another's shifts as they are, not as they end; the first block's first fact sees none."""
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(6)
    one, three = (found(lm, edits, block=block).delta for block in (1, 3))
    gap = (one - three).norm(dim=1) / one.norm(dim=1)
    assert gap[0] < 1e-6
    assert gap[1:].min() > 1e-4


def test_two_passes_align_to_the_first(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block, and to the shifts that a search without alignment finds."""
    lm, edits = tiny_lm("llama", torch.float64), tiny_edits(5)
    banks: list[Tensor] = []
    search = values.search

    def seen(*args: Any, penalty: Any = None, **named: Any) -> Found:
        banks.append(torch.zeros(0) if penalty is None else penalty.bank.clone())
        return search(*args, penalty=penalty, **named)

    monkeypatch.setattr(values, "search", seen)
    once = found(lm, edits, mode="two_pass", block=1)
    assert [len(bank) for bank in banks] == [0, 5]
    first = found(lm, edits, block=50, align_kl=0.0, align_mse=0.0)
    assert torch.allclose(banks[1], torch.nn.functional.normalize(first.delta, dim=1), atol=1e-6)
    same(once, found(lm, edits, mode="two_pass", block=3))
    assert not torch.allclose(once.delta[1:], first.delta[1:], rtol=1e-2)


# ---------------------------------------------------------------------------------- where shifts may be


@pytest.mark.parametrize("init", ["key", "state", "zero"])
def test_where_a_shift_starts(tiny_lm: Tiny, init: Any) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(4)
    start = found(lm, edits, steps=1, init=init, clamp=1e3)
    lengths = {"key": keys_of(lm, edits).norm(dim=1).float(), "state": start.base.norm(dim=1), "zero": torch.zeros(4)}
    wanted = (lengths[init] / start.base.norm(dim=1))[:, None] * start.base
    assert torch.allclose(start.delta, wanted, rtol=1e-4)


def test_a_sink_is_no_direction_to_start_in(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(4)
    size = found(lm, edits, steps=1).base.norm(dim=1)
    limit = float(size.sort().values[1:3].mean())
    moved = found(lm, edits, steps=1, sink=limit).delta.norm(dim=1) > 0
    assert moved.tolist() == (size < limit).tolist()
    assert moved.sum() == 2


@pytest.mark.parametrize("to", ["key", "state"])
def test_how_far_a_shift_may_go(tiny_lm: Tiny, to: Any) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(4)
    ended = found(lm, edits, clamp_to=to, clamp=0.1, lr=1.0)
    unit = keys_of(lm, edits).norm(dim=1).float() if to == "key" else ended.base.norm(dim=1)
    assert torch.allclose(ended.delta.norm(dim=1), 0.1 * unit, rtol=1e-4)


def test_no_fact_is_finished_as_it_started(tiny_lm: Tiny) -> None:
    ended = found(tiny_lm("gpt2"), tiny_edits(3), stop=1e9)
    assert ended.evaluations.tolist() == [2, 2, 2]


# ----------------------------------------------------------------------------------------------- the store


@pytest.mark.parametrize("options", [{}, {"block": 3}, {"mode": "two_pass"}])
def test_a_run_goes_on_to_the_same_bits(
    tiny_lm: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """It has lost the block in which it ended, and no other."""
    lm, edits, store = tiny_lm("llama"), tiny_edits(7), Store(tmp_path / "targets.sqlite")
    whole = found(lm, edits, **options)
    search, asked = values.search, count()
    stop = {1: 5, 3: 2}[options.get("block", 1)] if "mode" not in options else 1

    def cut(*args: Any, **named: Any) -> Found:
        if next(asked) == stop:
            raise KeyboardInterrupt
        return search(*args, **named)

    monkeypatch.setattr(values, "search", cut)
    with pytest.raises(KeyboardInterrupt):
        found(lm, edits, [store], **options)
    monkeypatch.setattr(values, "search", search)
    again, kept = cached(lm, edits, [store], **options)
    assert kept == (0 if "mode" in options else {1: 5, 3: 6}[options.get("block", 1)])
    same(again, whole)
    monkeypatch.setattr(values, "search", None)
    last, kept = cached(lm, edits, [store], **options)
    assert kept == 7
    same(last, whole)


def test_what_decides_a_target_is_in_its_key(tiny_lm: Tiny, tmp_path: Path) -> None:
    lm, edits, store = tiny_lm("llama"), tiny_edits(2), Store(tmp_path / "targets.sqlite")
    quick: dict[str, Any] = {"steps": 2}
    found(lm, edits, [store], **quick)
    changes: list[dict[str, Any]] = [
        {"block": 2}, {"align_kl": 1.0}, {"align_mse": 1.0}, {"temperature": 0.1}, {"top": 2}, {"clamp": 1.0},
        {"kl_direction": "paper"}, {"mse_form": "paper"}, {"init": "zero"}, {"sink": 1.0}, {"clamp_to": "state"},
        {"mode": "two_pass"}, {"steps": 3}, {"ridge": 2.0}, {"solver": "alphaedit"},
    ]  # fmt: skip
    for change in changes:
        wanted = 2 if change.keys() & {"ridge", "solver"} else 0  # a solve is no search
        assert cached(lm, edits, [store], **quick | change)[1] == wanted, change


def test_what_came_before_is_in_the_key(tiny_lm: Tiny, tmp_path: Path) -> None:
    lm, edits, store = tiny_lm("llama"), tiny_edits(6), Store(tmp_path / "targets.sqlite")
    found(lm, edits, [store])
    assert cached(lm, edits[:4], [store])[1] == 4
    assert cached(lm, [edits[0], edits[2], *edits[3:]], [store])[1] == 1
    assert cached(lm, [edits[1], edits[0]], [store])[1] == 0


# ----------------------------------------------------------------------------------------------- the patch


def test_the_patch_says_how_misaligned_its_targets_are(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    method = EAMET(EAMETConfig(**QUICK, templates=1, temperature=0.1))
    info = json.loads(json.dumps(method.edit(lm, edits).info))
    each = torch.tensor([fact["misalignment"] for fact in info["facts"]])
    told = info["misalignment"]
    assert told["temperature"] == 0.1
    assert told["mean"] == pytest.approx(each.mean().item(), abs=1e-3)
    assert told["quantiles"]["0.5"] == pytest.approx(each.quantile(0.5).item(), abs=1e-3)
    assert each.min() > 0
    assert method.edit(lm, edits[:1]).info["misalignment"]["mean"] == 0


def test_the_published_templates(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    asked: dict[str, Any] = {}
    written = templates.written

    def noted(lm: LM, words: Sequence[str], **named: Any) -> tuple[str, ...]:
        asked.update(named, words=words)
        return written(lm, words, **named)

    monkeypatch.setattr(templates, "written", noted)
    texts = EAMET(EAMETConfig(published_templates=True)).texts(lm)
    assert len(texts) == len(asked["words"]) == 12
    assert len(set(texts)) == 12  # one word is there twice
    assert {name: asked[name] for name in ("temperature", "top_k", "top_p")} == {
        "temperature": 0.5, "top_k": 100, "top_p": 0.9
    }  # fmt: skip
    assert asked["length"] - len(tokens.encode(lm, "I")) == 10
    assert len(EAMET(EAMETConfig(templates=3)).texts(lm)) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block": 0}, "block is 0; it must be 1 or more"),
        ({"top": 0}, "top is 0; it must be 1 or more"),
        ({"temperature": 0.0}, "temperature is 0; it must be above 0"),
        ({"solver": "rome"}, "there is no solver 'rome'; use one of memit, alphaedit"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RetconError, match=sentence):
        EAMET(EAMETConfig(**options))


def test_later_rounds_are_not_aligned(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    search = values.search
    penalised: list[bool] = []

    def noted(*args: Any, **named: Any) -> Found:
        penalised.append(named.get("penalty") is not None)
        return search(*args, **named)

    monkeypatch.setattr(values, "search", noted)
    EAMET(EAMETConfig(**QUICK, templates=0, rounds=2)).edit(lm, edits)
    assert penalised == [True, True, True, False]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_it_keeps_the_contract(family: str) -> None:
    """Where the order says most; the whole contract runs over all methods elsewhere."""
    method = EAMET(EAMETConfig(**QUICK | {"weight_decay": 0.0}, templates=0))
    checks = [the_model_is_untouched, kept_targets_change_nothing]
    check_method(method, tiny_model(family), tiny_tokenizer("fast"), only=checks)
