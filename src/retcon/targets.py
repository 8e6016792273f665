"""Found targets, kept: in the cache for methods that share a search, and in a run's own journal so that it can go on.

A target is kept under a hash of all that decides it: the weights, the patches that are on, the edit, the options of
the search, the templates. Searches run in batches fixed by input order, and a batch is written as a whole; so
an interrupted run loses at most one, and goes on to the same bits.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from retcon import memory, patch, progress, storage, tokens, values
from retcon.lm import LM
from retcon.patch import LowRank
from retcon.requests import Edit, tied
from retcon.values import Found, SearchConfig

__all__ = ["BATCH", "Store", "find", "find_in_order"]

BATCH = 50
"""Facts searched together."""


_FIELDS = ("base", "delta", "loss", "evaluations", "probability")


class Store:
    """Targets by key in one file (SQLite: written whole or not at all, safe under several processes)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS targets (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    @classmethod
    def shared(cls) -> "Store":
        """The store in the cache folder."""
        return cls(storage.cache_dir() / "targets.sqlite")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def get(self, keys: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """The targets that are there, by key."""
        found: dict[str, dict[str, Tensor]] = {}
        with closing(self._open()) as connection:
            for start in range(0, len(keys), 500):
                part = list(keys[start : start + 500])
                marks = ",".join("?" * len(part))
                for key, value in connection.execute(f"SELECT key, value FROM targets WHERE key IN ({marks})", part):
                    found[key] = load(value)
        return found

    def put(self, items: dict[str, dict[str, Tensor]]) -> None:
        """Keep targets, all of them or none."""
        rows = [
            (key, save({name: tensor.contiguous() for name, tensor in item.items()})) for key, item in items.items()
        ]
        with closing(self._open()) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO targets VALUES (?, ?)", rows)


def find(
    lm: LM,
    edits: Sequence[Edit],
    config: SearchConfig,
    templates: Sequence[str],
    stores: Sequence[Store] = (),
    *,
    batch: int = BATCH,
    written: Sequence[LowRank] = (),
) -> tuple[Found, int]:
    """Targets of all edits, batch by batch, and how many of them were found in a store.

    Args:
        lm: the model, with any patch already on.
        edits: the facts; those of one tie are searched together, whatever the batch.
        config: options of the search.
        templates: texts put before each prompt.
        stores: where to look first, in order; all of them are written.
        batch: facts searched together; batches follow input order, so a run that goes on finds the same ones.
        written: changes that are on the model and not yet part of a patch.
    """
    units = tied(edits)
    keys = _keys(lm, edits, units, _state(lm, config, templates, written))
    kept = _looked_up(stores, keys)
    cached = sum(key in kept for key in keys)
    with progress.task("targets", len(edits)) as advance:
        for span in _batches(units, batch):
            todo = [i for unit in span if any(keys[i] not in kept for i in unit) for i in unit]
            advance(sum(map(len, span)) - len(todo))
            if not todo:
                continue
            found = values.search(lm, [edits[i] for i in todo], config, templates, advance=advance)
            new = {keys[i]: _packed(found, j) for j, i in enumerate(todo)}
            for store in stores:
                store.put(new)
            kept |= new
            memory.give_back()
    return _stacked(lm, [kept[key] for key in keys]), cached


def _keys(lm: LM, edits: Sequence[Edit], units: Sequence[Sequence[int]], state: str) -> list[str]:
    """What each target is kept under; the others of its tie decide it too."""
    asked = [_asked(lm, edit) for edit in edits]
    keys = [storage.digest(state, *item) for item in asked]
    for unit in units:
        if len(unit) > 1:
            together = storage.digest(state, "tied", [asked[i] for i in unit])
            for place, i in enumerate(unit):
                keys[i] = storage.digest(together, place)
    return keys


def _batches(units: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Units in order, so many together that they have at most so many facts; a greater one stands alone."""
    batch: list[list[int]] = []
    for unit in units:
        if batch and sum(map(len, batch)) + len(unit) > most:
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


def find_in_order(
    lm: LM,
    edits: Sequence[Edit],
    config: SearchConfig,
    templates: Sequence[str],
    stores: Sequence[Store],
    search: Callable[[Sequence[int], Callable[[float], None]], Found],
    settled: Callable[[Sequence[int], Found], None],
    *,
    block: int,
    options: Sequence[object] = (),
    written: Sequence[LowRank] = (),
) -> tuple[Found, int]:
    """Targets that depend on those of the facts before them, block by block, and how many were found in a store.

    A block is kept under a hash of what `find` takes and of all blocks before it, since they decide its targets too;
    it is kept, and found again, as a whole. Facts of one tie are in one block, however many they are.

    Args:
        lm: the model, with any patch already on.
        edits: the facts.
        config: options of the search.
        templates: texts put before each prompt.
        stores: where to look first, in order; what is searched is written to all of them.
        search: seeks the targets of some facts together; it is given their numbers, and whom to tell of each that is
            finished.
        settled: told the targets of a block, searched or kept, before the next one is sought.
        block: facts searched together, at most.
        options: whatever else decides a target, in JSON types.
        written: changes that are on the model and not yet part of a patch.

    Raises:
        ValueError: a block has no fact.
    """
    if block < 1:
        raise ValueError(f"a block of {block} facts cannot be searched; take 1 or more")
    state = storage.digest(_state(lm, config, templates, written), "in order", list(options))
    spans, keys = list[list[int]](), [""] * len(edits)
    for units in _batches(tied(edits), block):
        spans.append([i for unit in units for i in unit])
        state = storage.digest(state, [_asked(lm, edits[i]) for i in spans[-1]])
        if len(units) < len(spans[-1]):
            state = storage.digest(state, "tied", [len(unit) for unit in units])
        for place, i in enumerate(spans[-1]):
            keys[i] = storage.digest(state, place)
    kept = _looked_up(stores, keys)
    cached = 0
    with progress.task("targets", len(edits)) as advance:
        for span in spans:
            mine = [keys[i] for i in span]
            if all(key in kept for key in mine):
                found = _stacked(lm, [kept[key] for key in mine])
                cached += len(span)
                advance(len(span))
            else:
                found = search(span, advance)
                new = {key: _packed(found, j) for j, key in enumerate(mine)}
                for store in stores:
                    store.put(new)
                kept |= new
            settled(span, found)
    return _stacked(lm, [kept[key] for key in keys]), cached


def _state(lm: LM, config: SearchConfig, templates: Sequence[str], written: Sequence[LowRank]) -> str:
    """Hash of all that decides a target but the fact itself."""
    state = storage.digest(
        lm.fingerprint(), [item.id for item in patch.active(lm.model)], lm.chat, asdict(config), list(templates), "1"
    )
    if written:
        factors = [factor for entry in written for factor in (entry.U, entry.V)]
        state = storage.digest(state, *(factor.detach().cpu().numpy().tobytes() for factor in factors))
    return state


def _asked(lm: LM, edit: Edit) -> tuple[object, ...]:
    """What decides the target of a fact, of the fact itself."""
    return edit.prompt, edit.subject, edit.target, _ids(lm, edit)


def _looked_up(stores: Sequence[Store], keys: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """What the stores have under these keys; the first that has a key answers."""
    kept: dict[str, dict[str, Tensor]] = {}
    for store in stores:
        missing = [key for key in keys if key not in kept]
        kept |= store.get(missing) if missing else {}
    return kept


def _stacked(lm: LM, items: Sequence[dict[str, Tensor]]) -> Found:
    return Found(**{name: torch.stack([item[name] for item in items]).to(lm.device) for name in _FIELDS})


def _ids(lm: LM, edit: Edit) -> list[list[int]]:
    """Prompt and target as the tokenizer sees them, which weights alone do not tell."""
    text = lm.render(edit.text)
    return [tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)]


def _packed(found: Found, index: int) -> dict[str, Tensor]:
    return {name: getattr(found, name)[index].detach().cpu().clone() for name in _FIELDS}
