"""Targets are found once: kept under all that decides them, batch by batch, whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import patch, progress, values
from retcon.lm import LM
from retcon.patch import LowRank
from retcon.requests import Edit
from retcon.targets import Store, find, find_in_order
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.values import Found, SearchConfig

Tiny = Callable[..., LM]

CONFIG = SearchConfig(layer=1, steps=3)
TEMPLATES = ("", "The. ")
FIELDS = ("base", "delta", "loss", "evaluations", "probability")


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run" / "targets.sqlite")


@pytest.fixture(name="searched")
def _searched(monkeypatch: pytest.MonkeyPatch) -> list[list[str | None]]:
    """Ids of the edits of each search that was made."""
    asked: list[list[str | None]] = []
    search = values.search

    def listed(lm: LM, edits: Sequence[Edit], *args: Any, **kwargs: Any) -> Found:
        asked.append([edit.id for edit in edits])
        return search(lm, edits, *args, **kwargs)

    monkeypatch.setattr(values, "search", listed)
    return asked


def new(seed: int = 0, kind: str = "fast", **options: Any) -> LM:
    return LM.wrap(tiny_model("llama", seed=seed), tiny_tokenizer(kind), **options)


def same(one: Found, two: Found) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def item(seed: int) -> dict[str, Tensor]:
    return {"delta": torch.randn(4, generator=torch.Generator().manual_seed(seed)), "evaluations": torch.tensor(seed)}


# ----------------------------------------------------------------------------------------------- the store


def test_a_store_keeps_what_it_is_given(store: Store) -> None:
    assert store.get(["a"]) == {}
    assert store.get([]) == {}
    store.put({"a": item(1), "b": item(2)})
    store.put({"b": item(3)})
    found = Store(store.path).get(["b", "c", "a"])
    assert set(found) == {"a", "b"}
    for key, seed in (("a", 1), ("b", 3)):
        assert set(found[key]) == {"delta", "evaluations"}
        assert all(torch.equal(found[key][name], value) for name, value in item(seed).items())


def test_a_store_is_asked_for_many_at_once(store: Store) -> None:
    """More than SQLite takes as variables of one statement."""
    store.put({f"key {i}": {"x": torch.tensor(i)} for i in range(1200)})
    found = store.get([f"key {i}" for i in range(100, 3000)])
    assert {key: int(value["x"]) for key, value in found.items()} == {f"key {i}": i for i in range(100, 1200)}


def test_a_store_takes_views(store: Store) -> None:
    whole = torch.arange(12.0).view(3, 4)
    store.put({"a": {"column": whole[:, 1]}})
    assert store.get(["a"])["a"]["column"].tolist() == [1, 5, 9]


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    """The process ends in the middle: nothing of the batch is there, and what was there before still is."""
    store.put({"old": item(0)})
    with sqlite3.connect(store.path) as connection:
        connection.execute(
            "CREATE TRIGGER cut BEFORE INSERT ON targets WHEN NEW.key = 'third' BEGIN SELECT RAISE(ABORT, 'cut'); END"
        )
    connection.close()
    with pytest.raises(sqlite3.IntegrityError, match="cut"):
        store.put({"first": item(1), "second": item(2), "third": item(3)})
    assert set(store.get(["old", "first", "second", "third"])) == {"old"}


def test_the_shared_store_is_in_the_cache_folder(cache_folder: Path) -> None:
    assert Store.shared().path == cache_folder / "targets.sqlite"
    assert Store.shared().path.is_file()


# -------------------------------------------------------------------------------------------------- finding


def test_without_a_store_every_target_is_searched(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    found, cached = find(lm, edits, CONFIG, TEMPLATES)
    assert cached == 0
    same(found, values.search(lm, edits, CONFIG, TEMPLATES))


def test_facts_of_one_tie_are_searched_together_whatever_the_batch(
    tiny_lm: Tiny, searched: list[list[str | None]]
) -> None:
    edits = [replace(edit, tie="t" if n in (1, 3, 4) else None) for n, edit in enumerate(tiny_edits(6))]
    find(tiny_lm("llama"), edits, CONFIG, TEMPLATES, batch=2)
    assert searched == [["tiny-0"], ["tiny-1", "tiny-3", "tiny-4"], ["tiny-2", "tiny-5"]]


def test_a_tied_target_is_kept_under_all_of_its_tie(
    tiny_lm: Tiny, store: Store, searched: list[list[str | None]]
) -> None:
    lm, edits = tiny_lm("llama"), [replace(edit, tie="t") for edit in tiny_edits(3)]
    first, _ = find(lm, edits, CONFIG, TEMPLATES, [store])
    again, cached = find(lm, edits, CONFIG, TEMPLATES, [store])
    assert (cached, len(searched)) == (3, 1)
    same(again, first)
    for others in (edits[:2], [replace(edit, tie=None) for edit in edits]):
        found, cached = find(lm, others, CONFIG, TEMPLATES, [store])
        assert cached == 0
        assert not torch.equal(found.delta[0], first.delta[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_target_is_found_again_to_the_bit(
    tiny_lm: Tiny, store: Store, searched: list[list[str]], dtype: torch.dtype
) -> None:
    lm, edits = tiny_lm("gpt2", dtype), tiny_edits(4)
    first, cached = find(lm, edits, CONFIG, TEMPLATES, [store])
    assert (cached, len(searched)) == (0, 1)
    again, cached = find(lm, edits, CONFIG, TEMPLATES, [store])
    assert (cached, len(searched)) == (4, 1)
    same(again, first)
    assert again.delta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_only_what_is_missing_is_searched(tiny_lm: Tiny, store: Store, searched: list[list[str]]) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    find(lm, [edits[4], edits[1]], CONFIG, TEMPLATES, [store])
    found, cached = find(lm, edits, CONFIG, TEMPLATES, [store])
    assert cached == 2
    assert searched[1] == ["tiny-0", "tiny-2", "tiny-3", "tiny-5"]
    wanted = values.search(lm, edits, CONFIG, TEMPLATES)
    for name in FIELDS:
        assert torch.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-3, atol=1e-4), name


def test_batches_are_fixed_by_input_order_and_kept_one_by_one(
    tiny_lm: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends in its third batch has kept two, and goes on to the same bits."""
    lm, edits = tiny_lm("llama"), tiny_edits(8)
    whole, _ = find(lm, edits, CONFIG, TEMPLATES, [Store(tmp_path / "whole.sqlite")], batch=3)
    store, asked = Store(tmp_path / "cut.sqlite"), []
    search = values.search

    def cut(it: LM, part: Sequence[Edit], *args: Any, **kwargs: Any) -> Found:
        asked.append([edit.id for edit in part])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return search(it, part, *args, **kwargs)

    monkeypatch.setattr(values, "search", cut)
    with pytest.raises(KeyboardInterrupt):
        find(lm, edits, CONFIG, TEMPLATES, [store], batch=3)
    assert asked == [["tiny-0", "tiny-1", "tiny-2"], ["tiny-3", "tiny-4", "tiny-5"], ["tiny-6", "tiny-7"]]
    found, cached = find(lm, edits, CONFIG, TEMPLATES, [store], batch=3)
    assert cached == 6
    assert asked[3:] == [["tiny-6", "tiny-7"]]
    same(found, whole)


def test_several_stores_are_asked_in_turn_and_all_written(
    tiny_lm: Tiny, tmp_path: Path, searched: list[list[str]]
) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    one, two = Store(tmp_path / "1.sqlite"), Store(tmp_path / "2.sqlite")
    find(lm, edits[:1], CONFIG, TEMPLATES, [one])
    find(lm, edits[1:2], CONFIG, TEMPLATES, [two])
    found, cached = find(lm, edits, CONFIG, TEMPLATES, [one, two])
    assert cached == 2
    assert searched[2:] == [["tiny-2"]]
    for store in (one, two):
        assert find(lm, edits[2:], CONFIG, TEMPLATES, [store])[1] == 1
    assert torch.equal(found.delta[2], find(lm, edits[2:], CONFIG, TEMPLATES, [two])[0].delta[0])


def test_the_same_edit_twice_is_one_target(tiny_lm: Tiny, store: Store) -> None:
    lm, (edit,) = tiny_lm("llama"), tiny_edits(1)
    found, _ = find(lm, [edit, edit], CONFIG, TEMPLATES, [store])
    assert torch.equal(found.delta[0], found.delta[1])
    assert find(lm, [edit, edit, edit], CONFIG, TEMPLATES, [store])[1] == 3


def test_what_does_not_matter_to_a_target_is_not_in_its_key(tiny_lm: Tiny, store: Store) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    find(lm, edits, CONFIG, TEMPLATES, [store])
    renamed = [replace(edit, id="other", old="something", relation="P1") for edit in reversed(edits)]
    assert find(new(), renamed, CONFIG, TEMPLATES, [store], batch=1)[1] == 2


CHANGES = ("weight", "model", "tokenizer", "chat", "prompt", "subject", "target", "options", "templates", "patch")


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_a_target_is_in_its_key(store: Store, what: str) -> None:
    lm, edits, config, templates = new(), tiny_edits(2), CONFIG, TEMPLATES
    first, _ = find(lm, edits, config, templates, [store])
    if what == "weight":
        with torch.no_grad():
            lm.projection(3).weight.mul_(1.01)  # type: ignore[operator]
    elif what == "model":
        lm = new(seed=1)
    elif what == "tokenizer":
        lm = new(kind="bos")
    elif what == "chat":
        lm = new(chat=True)
    elif what == "prompt":
        edits = [replace(edit, prompt=f"Well, {edit.prompt}") for edit in edits]
    elif what in ("subject", "target"):
        change: dict[str, Any] = {what: "Bombay"}
        edits = [replace(edit, **change) for edit in edits]
    elif what == "options":
        config = replace(config, kl=0.1)
    elif what == "templates":
        templates = ("", "An. ")
    if what != "patch":
        found, cached = find(lm, edits, config, templates, [store])
        assert cached == 0
        assert not torch.equal(found.delta, first.delta)
        return
    entries: dict[str, patch.Entry] = {lm.arch.mlp_out[0]: LowRank(torch.ones(64, 1), torch.ones(112, 1))}
    step = patch.Step(method="memit", config={}, edits=(), seed=0)
    made = patch.Patch(entries, patch.describe_base(lm.model, entries, name="tiny"), (step,))
    with made.on(lm.model):
        found, cached = find(lm, edits, config, templates, [store])
    assert cached == 0
    assert not torch.allclose(found.base, first.base, rtol=1e-2)
    made.merge(lm.model)
    assert find(lm, edits, config, templates, [store])[1] == 0
    made.unmerge(lm.model)
    assert find(lm, edits, config, templates, [store])[1] == 2


def test_progress_counts_every_fact_once(tiny_lm: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    heard: list[tuple[str, float]] = []

    class Bar:
        def __init__(self, label: str, total: int) -> None:
            heard.append((label, total))

        def __enter__(self) -> Callable[[float], None]:
            return lambda done: heard.append(("done", done))

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(progress, "task", Bar)
    find(lm, edits[:2], CONFIG, TEMPLATES, [store])
    heard.clear()
    find(lm, edits, CONFIG, TEMPLATES, [store], batch=2)
    assert heard[0] == ("targets", 5)
    assert sum(done for label, done in heard[1:] if label == "done") == 5


# ------------------------------------------------------------------------------------------------ in order


def in_order(
    lm: LM, edits: Sequence[Edit], stores: Sequence[Store] = (), *, block: int = 2, end: int | None = None, **more: Any
) -> tuple[Found, int, list[tuple[str, list[int]]]]:
    """Targets, how many were kept, and what was asked of the caller; block `end` is never searched."""
    asked: list[tuple[str, list[int]]] = []

    def search(span: Sequence[int], advance: Callable[[float], None]) -> Found:
        if end is not None and span[0] // block == end:
            raise KeyboardInterrupt
        asked.append(("search", list(span)))
        return values.search(lm, [edits[i] for i in span], CONFIG, TEMPLATES, advance=advance)

    def settled(span: Sequence[int], found: Found) -> None:
        assert found.delta.shape[0] == len(span)
        asked.append(("settled", list(span)))

    found, cached = find_in_order(lm, edits, CONFIG, TEMPLATES, stores, search, settled, block=block, **more)
    return found, cached, asked


def test_blocks_are_sought_and_settled_in_order(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    found, cached, asked = in_order(lm, edits)
    spans = [[0, 1], [2, 3], [4]]
    assert asked == [(what, span) for span in spans for what in ("search", "settled")]
    assert cached == 0
    same(found, find(lm, edits, CONFIG, TEMPLATES, batch=2)[0])


def test_a_run_in_order_loses_the_block_it_ended_in(tiny_lm: Tiny, store: Store) -> None:
    """Blocks that were kept are settled all the same, since those after them depend on it."""
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    whole, _, _ = in_order(lm, edits)
    with pytest.raises(KeyboardInterrupt):
        in_order(lm, edits, [store], end=2)
    found, cached, asked = in_order(lm, edits, [store])
    assert cached == 4
    assert asked == [("settled", [0, 1]), ("settled", [2, 3]), ("search", [4, 5]), ("settled", [4, 5])]
    same(found, whole)


def test_a_block_is_found_again_only_after_the_same_blocks(tiny_lm: Tiny, store: Store) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    in_order(lm, edits, [store])
    assert in_order(lm, edits[:4], [store])[1] == 4
    assert in_order(lm, edits[:3], [store])[1] == 2  # the second block is another one
    assert in_order(lm, edits[2:], [store])[1] == 0
    assert in_order(lm, [*edits[:2], *edits[4:]], [store])[1] == 2
    assert in_order(lm, edits, [store], block=3)[1] == 0
    assert in_order(lm, edits, [store], options=["aligned", 2.0])[1] == 0
    assert find(lm, edits, CONFIG, TEMPLATES, [store])[1] == 0  # what depends on others is not found for one alone


def test_facts_of_one_tie_are_in_one_block_and_their_tie_is_a_part_of_what_is_kept(tiny_lm: Tiny, store: Store) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    tied = [replace(edit, tie="t" if n in (1, 3, 4) else None) for n, edit in enumerate(edits)]
    found, cached, asked = in_order(lm, tied, [store])
    assert [span for what, span in asked if what == "search"] == [[0], [1, 3, 4], [2]]
    assert cached == 0
    torch.testing.assert_close(found.delta[[3, 4]], found.delta[[1, 1]])
    assert in_order(lm, tied, [store])[1] == 5
    apart = [edits[n] for n in (0, 1, 3, 4, 2)]
    assert in_order(lm, apart, [store])[1] == 0


def test_a_block_has_facts(tiny_lm: Tiny) -> None:
    with pytest.raises(ValueError, match="block of 0 facts"):
        in_order(tiny_lm("llama"), tiny_edits(1), block=0)
