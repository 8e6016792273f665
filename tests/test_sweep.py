"""What the sweep reads is what plain full forwards of the partly edited model show, however it keeps its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retcon import forward, hooks, patch, sweep, tokens
from retcon.lm import LM
from retcon.patch import LowRank
from retcon.requests import Edit
from retcon.sweep import Reading, Sweep
from retcon.testing import FAMILIES, tiny_edits

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
LAYERS = (0, 1, 2)
WEIGHTS = (0.5, 0.25, 0.25)


def change(lm: LM, seed: int, size: float = 0.3) -> LowRank:
    """A random change of a projection, large enough to be seen above it."""
    generator = torch.Generator().manual_seed(seed)
    d, width = lm.arch.d_model, lm.arch.d_mlp
    return LowRank(
        size * torch.randn(d, 2, generator=generator), torch.randn(width, 2, generator=generator) / width**0.5
    )


@torch.no_grad()
def plain(lm: LM, edits: Sequence[Edit], layer: int, top: int, weights: Sequence[float] = WEIGHTS) -> Reading:
    """One whole row at a time through the whole model."""
    model: Any = lm.model
    keys, bare, outputs, states = [], [], [], []
    projection, last = lm.projection(layer), lm.block(top)
    for edit in edits:
        found = []
        for index, template in enumerate(TEMPLATES[: len(weights)]):
            at = tokens.locate_subject(lm, edit.prompt, edit.subject or "", template)
            with (
                hooks.record({"key": projection}, "input") as inputs,
                hooks.record({"out": lm.projection(top), "state": last}, "output") as seen,
            ):
                model(input_ids=torch.tensor([at.ids]), use_cache=False)
            found.append(hooks.unflattened(inputs["key"], 1)[0, at.site].double())
            if index == 0:
                bare.append(found[0])
                outputs.append(hooks.unflattened(seen["out"], 1)[0, at.site].double())
                states.append(seen["state"][0, at.site].double())
        keys.append(sum((w * key for w, key in zip(weights, found, strict=True)), torch.zeros_like(found[0])))
    return Reading(*(torch.stack(part) for part in (keys, bare, outputs, states)))


def agree(found: Reading, wanted: Reading, tolerance: float = 1e-4) -> None:
    for name in ("keys", "bare_keys", "outputs", "states"):
        ours: Tensor = getattr(found, name)
        theirs: Tensor = getattr(wanted, name)
        assert ours.dtype == torch.float64
        assert ours.shape == theirs.shape
        assert ((ours - theirs).norm(dim=1) <= tolerance * theirs.norm(dim=1)).all(), name


def swept(lm: LM, edits: Sequence[Edit], **options: Any) -> list[Reading]:
    """Read and write each layer, then read the top once more."""
    with Sweep(lm, edits, TEMPLATES, LAYERS, **options) as run:
        readings = []
        for layer in LAYERS:
            readings.append(run.read(layer, LAYERS[-1]))
            run.write(layer, change(lm, layer))
        return [*readings, run.read(LAYERS[-1], LAYERS[-1])]


@pytest.mark.parametrize("family", FAMILIES)
def test_readings_are_those_of_plain_forwards(tiny_lm: Tiny, family: str) -> None:
    """Before each write, with the writes below on; and after the last."""
    lm, edits = tiny_lm(family), tiny_edits(5)
    found = swept(lm, edits)
    with ExitStack() as stack:
        wanted = []
        for layer in LAYERS:
            wanted.append(plain(lm, edits, layer, LAYERS[-1]))
            stack.enter_context(patch.hooked(lm.projection(layer), change(lm, layer)))
        wanted.append(plain(lm, edits, LAYERS[-1], LAYERS[-1]))
    for ours, theirs in zip(found, wanted, strict=True):
        agree(ours, theirs)
    moved = (found[3].states - found[0].states).norm(dim=1)
    assert (moved > 1e-2 * found[0].states.norm(dim=1)).all()


@pytest.mark.parametrize("chunk_tokens", [1, 40])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "mistral", "bloom"])
def test_rows_that_are_not_kept_run_anew(
    tiny_lm: Tiny, family: str, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the states would not fit, and in chunks of any size: the same."""
    lm, edits = tiny_lm(family), tiny_edits(4)
    wanted = swept(lm, edits)
    for ours, theirs in zip(swept(lm, edits, chunk_tokens=chunk_tokens), wanted, strict=True):
        agree(ours, theirs)
    monkeypatch.setattr(sweep, "_MAX_STATES", 0)
    ran: list[int] = []
    with lm.module(lm.arch.attn_out[0]).register_forward_hook(lambda *_: ran.append(0)):
        for ours, theirs in zip(swept(lm, edits), wanted, strict=True):
            agree(ours, theirs)
    assert len(ran) == 4 * 4  # four readings, each from the ids: bare rows, a common start, its rows, the other rows


def test_kept_rows_start_at_the_layer_that_was_read_last(tiny_lm: Tiny) -> None:
    lm, ran = tiny_lm("llama"), []
    with (
        lm.module(lm.arch.attn_out[0]).register_forward_hook(lambda *_: ran.append(0)),
        lm.module(lm.arch.attn_out[1]).register_forward_hook(lambda *_: ran.append(1)),
    ):
        swept(lm, tiny_edits(3))
    assert ran.count(0) == 2 + 2  # the bare rows and the others; again for the layer above, now that 0 is written
    assert ran.count(1) == 1 + 2 + 2  # other rows end at their key


def test_a_model_that_cannot_be_entered_half_way_is_swept_from_its_ids(
    tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(3)
    wanted = swept(lm, edits)
    monkeypatch.setattr(forward, "entry_holds", lambda _: False)
    monkeypatch.setattr(forward, "entered_at", None)
    for ours, theirs in zip(swept(lm, edits), wanted, strict=True):
        agree(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_what_is_written_is_what_the_next_reading_shows(tiny_lm: Tiny, family: str) -> None:
    """A change of rank N at the last layer moves outputs and states by U V^T k, times the write gain."""
    lm, edits = tiny_lm(family), tiny_edits(4)
    with Sweep(lm, edits, TEMPLATES, [1]) as run:
        before = run.read(1, 1)
        written = change(lm, 7)
        run.write(1, written)
        after = run.read(1, 1)
    wanted = before.bare_keys @ written.V.double() @ written.U.double().T
    for ours in (after.outputs - before.outputs, after.states - before.states):
        assert (ours - wanted).norm() <= 1e-4 * wanted.norm()
    assert torch.equal(after.keys, before.keys)


def test_layers_need_not_be_neighbours(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    with Sweep(lm, edits, TEMPLATES, [0, 3]) as run:
        run.read(0, 3)
        run.write(0, change(lm, 0))
        found = run.read(3, 3)
    with patch.hooked(lm.projection(0), change(lm, 0)):
        agree(found, plain(lm, edits, 3, 3))


@pytest.mark.parametrize(("share", "weights"), [(0.5, WEIGHTS), (1 / 3, (1 / 3,) * 3), (1.0, (1.0, 0.0, 0.0))])
def test_the_bare_prompt_has_its_share_in_a_key(tiny_lm: Tiny, share: float, weights: tuple[float, ...]) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    with Sweep(lm, edits, TEMPLATES, [1], bare_weight=share) as run:
        agree(run.read(1, 1), plain(lm, edits, 1, 1, weights))


def test_the_bare_prompt_alone_is_the_whole_key(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    with Sweep(lm, edits, ("",), [1], bare_weight=0.5) as run:
        found = run.read(1, 2)
    agree(found, plain(lm, edits, 1, 2, (1.0,)))
    assert torch.equal(found.keys, found.bare_keys)


def test_a_patch_that_is_on_is_part_of_what_is_read(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(3)
    with patch.hooked(lm.projection(1), change(lm, 9)):
        with Sweep(lm, edits, TEMPLATES, LAYERS) as run:
            found = run.read(2, 3)
        agree(found, plain(lm, edits, 2, 3))


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_sweep_leaves_no_trace_whatever_happens(tiny_lm: Tiny, traces: Traces, family: str) -> None:
    lm = tiny_lm(family)
    before = traces(lm.model)
    swept(lm, tiny_edits(2))
    assert traces(lm.model) == before

    def fail() -> None:
        with Sweep(lm, tiny_edits(2), TEMPLATES, LAYERS) as run:
            run.read(0, 2)
            run.write(0, change(lm, 0))
            raise KeyError("meanwhile")

    with pytest.raises(KeyError, match="meanwhile"):
        fail()
    assert traces(lm.model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_that_rows_share_is_run_once(tiny_lm: Tiny, family: str) -> None:
    """And nothing is read but what comes without sharing."""
    lm, edits = tiny_lm(family), tiny_edits(6)
    templates = ("", "Because I am in the city. ")
    ran: list[int] = []
    with Sweep(lm, edits, templates, [1]) as run, lm.block(0).register_forward_hook(lambda *_: ran.append(1)):
        shared = run.read(1, 2)
        assert len(ran) == 3
        start = next(chunk for chunk in run._chunks if chunk.kind == "start")
        assert start.rows.width >= sweep._SHARED_TOKENS
    one_by_one = []
    for edit in edits:
        with Sweep(lm, [edit], templates, [1]) as run:
            assert all(chunk.kind != "start" for chunk in run._chunks)
            one_by_one.append(run.read(1, 2))
    for name in ("keys", "bare_keys", "outputs", "states"):
        alone = torch.cat([getattr(reading, name) for reading in one_by_one])
        assert (getattr(shared, name) - alone).norm() <= 1e-4 * alone.norm(), name
