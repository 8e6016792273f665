"""What a method hands back: its changes as a patch that says how they were made."""

import platform
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from torch import Tensor

from retcon import patch, tokens
from retcon.errors import PatchError, RetconError
from retcon.lm import LM
from retcon.patch import Entry, Patch, Step
from retcon.patch.context import ROOT
from retcon.requests import Edit, to_dict

__all__ = ["as_patch", "clock", "is_on", "joined", "refuse_none", "refuse_texts", "resumed", "timed", "unedited"]


def refuse_none(edits: Sequence[object]) -> None:
    """Refuse a batch without an edit."""
    if not edits:
        raise RetconError("there is no edit; give at least one")


def clock() -> dict[str, float]:
    """The phases of an edit that every method tells of, no second spent on any yet."""
    return {"statistics": 0.0, "targets": 0.0, "solve": 0.0}


def as_patch(
    lm: LM,
    method: str,
    config: Any,
    edits: Sequence[Edit],
    entries: Mapping[str, Entry],
    state: Patch | None,
    memory: Mapping[str, Tensor],
    seconds: Mapping[str, float],
    info: Mapping[str, Any],
) -> Patch:
    """The patch of one call of `edit`, on top of `state` where there is one.

    Args:
        lm: the model, with `state` and all that it stands on in force.
        method: the method's id.
        config: its configuration, a dataclass.
        edits: the facts.
        entries: the changes, by module path.
        state: the patch to go on from; the result contains it.
        memory: what later calls must know; it takes the place of what `state` keeps under the same names.
        seconds: time spent, by phase.
        info: diagnostics, in JSON types.
    """
    options = asdict(config)
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    step = Step(
        method=method,
        config=options,
        edits=tuple(to_dict(edit) for edit in edits),
        parent=patch.top(lm.model),
        seed=options.get("seed"),
        versions=versions,
        chat=lm.chat,
        bos=bool(tokens.special_ids(lm)[0]),
    )
    base = patch.describe_base(lm.model, entries, name=lm.name, revision=lm.revision, source=lm.source)
    told = {"n": len(edits), "seconds": {name: round(value, 3) for name, value in seconds.items()}, **info}
    if state is None:
        return Patch(dict(entries), base, (step,), dict(memory), told)
    return state.then(entries, step, base=base, state={**state.state, **memory}, info=told)


def joined(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs, one after the other, tell of themselves: counts and seconds added, facts in order."""
    seconds: dict[str, float] = {}
    for info in infos:
        for phase, value in info["seconds"].items():
            seconds[phase] = round(seconds.get(phase, 0.0) + value, 3)
    return {
        "n": sum(info["n"] for info in infos),
        "seconds": seconds,
        "targets_cached": sum(info["targets_cached"] for info in infos),
        "facts": [fact for info in infos for fact in info["facts"]],
    }


def is_on(lm: LM, state: Patch | None) -> bool:
    """Whether the caller runs the state already."""
    return state is not None and state.id in {item.id for item in patch.active(lm.model)}


def refuse_texts(lm: LM, state: Patch | None) -> None:
    """Refuse to read a model's states where texts go before its prompts: they stand in other columns.

    Raises:
        PatchError: the state, or a patch on the model, holds a context.
    """
    if patch.reads_texts(lm.model) or (state is not None and ROOT in state.entries):
        raise PatchError(
            "this method reads the model's states, and a context puts other text before the prompt; edit the bare "
            "model and add the patch that holds the context"
        )


@contextmanager
def resumed(lm: LM, state: Patch | None, *, texts: bool = False) -> Iterator[None]:
    """Run the model with the state on, whether or not the caller runs it already.

    Args:
        lm: the model.
        state: the patch.
        texts: whether what follows works with texts before the prompts.

    Raises:
        PatchError: it does not, and there are some.
    """
    if not texts:
        refuse_texts(lm, state)
    if state is None or is_on(lm, state):
        yield
        return
    with state.on(lm.model):
        yield


@contextmanager
def unedited(lm: LM, state: Patch | None) -> Iterator[None]:
    """Run the model that the state was made for, whether or not the caller runs it with the state on.

    A state that was merged stays in force.
    """
    if state is None:
        yield
        return
    with patch.suspended(lm.model, state):
        yield


@contextmanager
def timed(seconds: MutableMapping[str, float], phase: str) -> Iterator[None]:
    """Add the time spent in the block to a phase."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
