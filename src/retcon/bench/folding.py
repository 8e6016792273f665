"""A method run over edits, in one call or as a fold over chunks, so that a run that is stopped goes on."""

import glob
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retcon import progress
from retcon.bench import peak
from retcon.errors import PatchError
from retcon.lm import LM
from retcon.methods import Method
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["After", "folded", "folds", "held", "resumable", "steps_of"]

After = Callable[[Patch, Mapping[str, Any]], Mapping[str, Any]]
"""Told the patch after each call and what the fold's info said before it; what it returns is added to the info."""


def folded(
    lm: LM,
    method: Method,
    edits: Sequence[Edit],
    home: Path,
    key: str,
    *,
    base: Patch | None = None,
    chunk: int | None = None,
    cache: bool = True,
    retain: Sequence[Any] = (),
    after: After | None = None,
) -> Patch:
    """The patch of all edits, saved to `home`; one that is there already under this key is taken.

    What is done is kept beside `home` until then: found targets, and the patch of the chunks so far. So a run that is
    stopped loses one batch of targets or one chunk at most. `info["run"]` is the key, `info["wall_seconds"]` the time
    in the method, `info["peak_memory_mb"]` and `info["peak_device_mb"]` the most memory that it took.

    Args:
        lm: the model.
        method: a method with its config.
        edits: the facts, at least one.
        home: the folder of the patch.
        key: hash of all that decides the patch; only the same run goes on from what was kept.
        base: the patch to go on from; the result contains it.
        chunk: edits of one step of the fold, more where some of them share a target; None takes all at once.
        cache: whether targets are looked up and kept in the shared store.
        retain: what is to stay, for methods that use it.
        after: called after each step; what it tells is kept with the patch of that step.
    """
    older = held(home)
    if older is not None and older.info.get("run") == key:
        return older
    kept = resumable(home, key)
    stores = [Store.shared() if cache else Store(kept / "targets.sqlite")]
    patch = held(kept / "patch") or base
    done = 0 if patch is None else len(patch.edits) - (0 if base is None else len(base.edits))
    with progress.task("edits", len(edits)) as advance:
        advance(done)
        for start, end in steps_of(edits, chunk or len(edits)):
            if end <= done:
                continue
            part = edits[start:end]
            begun = time.perf_counter()
            with peak.measured() as memory:
                made = method.edit(lm, part, retain=retain, state=patch, stores=stores)
            spent = {"run": key, "wall_seconds": time.perf_counter() - begun}
            spent |= {"peak_memory_mb": memory.megabytes, "peak_device_mb": memory.device_megabytes}
            spent["peak_memory_own"] = memory.own
            before = {} if patch is None or start == 0 else patch.info
            info = _added(before, {**made.info, **spent})
            patch = replace(made, info=info | dict(after(made, before) if after is not None else {}))
            patch.save(kept / "patch" if end < len(edits) else home)
            advance(len(part))
    assert patch is not None  # there is at least one edit
    for rest in home.parent.glob(f".{glob.escape(home.name)}.partial-*"):  # those of other runs are of no use any more
        shutil.rmtree(rest, ignore_errors=True)
    return patch


def steps_of(edits: Sequence[Edit], size: int) -> Iterator[tuple[int, int]]:
    """Where each step of a fold begins and ends: `size` edits, or more where some of them share a target."""
    last = {edit.tie: n for n, edit in enumerate(edits) if edit.tie is not None}
    start = end = 0
    for n, edit in enumerate(edits):
        end = max(end, n + 1, 0 if edit.tie is None else last[edit.tie] + 1)
        if n + 1 == end and (end - start >= size or end == len(edits)):
            yield start, end
            start = end


def resumable(home: Path, key: str) -> Path:
    """The folder beside a patch in which its run keeps how far it has come."""
    return home.with_name(f".{home.name}.partial-{key[:12]}")


def held(home: Path) -> Patch | None:
    """The patch in a folder; None where there is none that can be read."""
    try:
        return Patch.load(home) if home.exists() else None
    except PatchError:
        return None  # damaged by other hands: it is made anew


def folds(patch: Patch) -> bool:
    """Whether it is a change of weights; else the weights still hold what they held."""
    return all(entry.folds for entry in patch.entries.values())


def _added(before: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a fold's patch: seconds and counts of all its steps added, facts in order, the highest peak."""
    info = dict(made)
    old: Mapping[str, float] = before.get("seconds", {})
    info["seconds"] = {phase: round(old.get(phase, 0) + value, 3) for phase, value in made["seconds"].items()}
    for name in ("n", "targets_cached", "wall_seconds"):
        info[name] = round(before.get(name, 0) + made.get(name, 0), 3)
    info["facts"] = [*before.get("facts", []), *made.get("facts", [])]
    for name in ("peak_memory_mb", "peak_device_mb"):
        peaks = [told[name] for told in (before, made) if told.get(name) is not None]
        info[name] = max(peaks, default=None)
    return info
