"""The cells of a bench: one method with its options, one model, one set, so many edits, one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retcon import methods
from retcon.bench.config import Config
from retcon.bench.words import as_json, slug
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.report.rows import named

__all__ = ["Cell", "cells", "configured", "short", "why_not"]

_LETTERS = 120
"""Of a file's name: folders take 255 bytes, and names get endings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    model: str
    method: str
    dataset: str
    edits: int
    seed: int = 0
    chunk: int | None = None
    """Edits of one step of a fold; None for one batch."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of the method that are given."""

    @property
    def name(self) -> str:
        """What it is called."""
        steps = [] if self.chunk is None else [f"in chunks of {self.chunk}"]
        where = [short(self.dataset), f"N={self.edits}", *steps, f"seed {self.seed}", short(self.model)]
        return ", ".join([self.method, *where, *named(self.options)])

    @property
    def slug(self) -> str:
        """The name as a file may have it, its beginning where it is long."""
        return slug(self.name)[:_LETTERS]

    def asked(self) -> dict[str, Any]:
        """What a row says that it is of, in JSON types."""
        return {
            "model": self.model,
            "method": self.method,
            "options": as_json(self.options),
            "dataset": self.dataset,
            "edits": self.edits,
            "seed": self.seed,
            "mode": "batch" if self.chunk is None else "sequential",
            "chunk": self.chunk,
        }


def short(place: str) -> str:
    """A name as it is, of a path its last part."""
    return Path(place).name if Path(place).exists() else place


def cells(config: Config, only: Sequence[str] = ()) -> list[Cell]:
    """Every combination, in an order that loads each model once; the smaller numbers of edits come first.

    Args:
        config: what is asked for.
        only: of its models, methods, datasets, `n=NUMBER` and `seed=NUMBER`; words of one kind are alternatives.

    Raises:
        RetconError: a word of `only` is none of these.
    """
    wanted = _wanted(config, only)
    return [
        Cell(
            model=model, method=method, dataset=dataset, edits=edits, seed=seed, chunk=config.chunk,
            options=config.options(method),
        )
        for model in wanted["models"]
        for edits in sorted(wanted["edits"])
        for dataset in wanted["datasets"]
        for seed in wanted["seeds"]
        for method in wanted["methods"]
    ]  # fmt: skip


def _wanted(config: Config, only: Sequence[str]) -> dict[str, list[Any]]:
    """What is asked for by kind, each thing once, and of it what `only` names."""
    kinds: dict[str, dict[str, Any]] = {
        "methods": {name: name for name in config.methods},
        "datasets": {name: name for name in config.datasets},
        "models": {name: name for name in config.models},
        "edits": {f"n={number}": number for number in config.edits},
        "seeds": {f"seed={number}": number for number in config.seeds},
    }
    chosen: dict[str, list[Any]] = {}
    for word in only:
        found = [kind for kind, values in kinds.items() if word in values]
        if not found:
            known = ", ".join(word for values in kinds.values() for word in values)
            raise RetconError(f"--only {word}: no cell is of that; choose from {known}")
        for kind in found:
            chosen.setdefault(kind, []).append(kinds[kind][word])
    return {kind: list(dict.fromkeys(chosen.get(kind, values.values()))) for kind, values in kinds.items()}


def configured(
    name: str, options: Mapping[str, Any], seed: int, *, shared: Mapping[str, Any] | None = None
) -> methods.Method:
    """A method; its seed is the bench's, unless the options name another.

    Args:
        name: its id.
        options: beside its defaults.
        seed: of the bench.
        shared: options of all methods that have them; those that this one has not are passed over.

    Raises:
        RetconError: there is no such method or option.
    """
    known = methods.METHODS[name].Config.__dataclass_fields__ if name in methods.METHODS else ()
    given = {key: value for key, value in {"seed": seed, **(shared or {})}.items() if key in known}
    return methods.method(name, **given | dict(options))


def why_not(lm: LM, method: methods.Method) -> str | None:
    """Why a method cannot edit a model, "n/a: ..."; None where it can."""
    declared = getattr(method, "unsupported", None)
    reason = None if declared is None else declared(lm)
    return None if reason is None else f"n/a: {method.name}: {reason}"
