"""The engine of all methods that locate and edit: statistics, targets, and a sweep that writes layer by layer.

A method of the family is a configuration, and a rule for one layer: from the keys and the residuals of all facts to the
factors of the change. Everything else is here, once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, memory, patch, precision, solve, stats, targets, templates
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import record
from retcon.methods.family import (
    NARROW,
    LocateAndEditConfig,
    Problem,
    Site,
    edited_layers,
    past_keys,
    search_config,
    still_held,
)
from retcon.methods.retained import retained_keys
from retcon.methods.rounds import remembered, residuals, shared_keys, taken_up, told
from retcon.patch import LowRank, Patch
from retcon.requests import Edit, tied
from retcon.sweep import Reading, Sweep
from retcon.targets import Store
from retcon.values import Found, SearchConfig, rows_of

__all__ = ["LocateAndEdit", "edit_layers", "moments"]

_TAKEN_UP = 10
"""Facts that a later round takes up in any case."""


class LocateAndEdit(ABC):
    """A method of the family: its configuration, and its rule for one layer. The rest has defaults to override."""

    Config: Any = LocateAndEditConfig
    name: str = ""
    order_matters: bool = False
    uses_retain: bool = True
    site: Site = "layer_out"
    """Where targets are sought."""
    every_layer: bool = False
    """Whether targets are sought at each edited layer in turn, on the model as edited so far, and written in full."""
    narrow: bool = False
    """Whether the window has five layers at most, as published ones do."""
    bare_weight: float = 0.5
    """Share of the bare prompt in an averaged key; the other templates share the rest evenly."""
    remembers: bool = True
    """Whether the keys of a batch are kept in the patch for later ones."""
    shares: bool = True
    """Whether edits of one tie get one shift."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Edit all facts in one batch; with `state`, on top of that patch, which the result then contains.

        Args:
            lm: the model; it is left as it was.
            edits: the facts; each needs a subject.
            retain: texts to keep: what the edited projections say to them, and to the model's own answers, is to stay,
                by `retain_weight`.
            state: the patch to go on from.
            stores: where found targets are looked up and kept.

        Raises:
            RequestError: an edit has no subject.
            RetconError: there is no edit, or the layers are not there.
        """
        one = self.begun()
        return one.finished(edit_layers(one, lm, edits, retain=retain, state=state, stores=stores))

    @abstractmethod
    def rule(self, problem: Problem) -> solve.Factors:
        """The change of one projection, from the keys and the residuals of all facts."""

    def begun(self) -> Self:
        """The method for one call: a copy, where it keeps what the call finds out; a method holds options only."""
        return self

    def finished(self, made: Patch) -> Patch:
        """The patch with what the call found out besides."""
        return made

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The layers to edit, from below."""
        return edited_layers(lm, self.config.layers, width=NARROW if self.narrow or self.seeks_each(lm) else None)

    def seeks_each(self, lm: LM) -> bool:
        """Whether each layer has targets of its own: by the method's nature, or as a norm stands behind the MLP."""
        return self.every_layer or lm.arch.write_gain is None

    def texts(self, lm: LM) -> tuple[str, ...]:
        """The texts that prompts must hold after, besides none: what the model as it is writes itself."""
        return _templates(lm, self.config)

    def prepare(
        self,
        lm: LM,
        paths: Sequence[str],
        known: Mapping[str, stats.Moments],
        notes: dict[str, Any],
    ) -> Mapping[str, Any]:
        """What the rule needs besides, once a call and before the state is on, for some of the projections at `paths`.

        Args:
            lm: the unedited model.
            paths: module paths of the projections to edit.
            known: the statistics, by path; empty where C = I.
            notes: taken up into the patch's info; JSON types.

        Raises:
            RetconError: the method cannot work with these statistics.
        """
        return {}

    def retained(self, lm: LM, paths: Sequence[str], retain: Sequence[str]) -> Mapping[str, Tensor]:
        """Keys of texts to retain, weighted, for each projection at `paths`; read before the state is on."""
        return retained_keys(lm, paths, retain, self.config.retain_tokens, self.config.retain_weight)

    def share(self, left: int) -> float:
        """The share of the remaining residual that the next layer takes, `left` of them being still to write."""
        return 1 / left

    def find(
        self,
        lm: LM,
        edits: Sequence[Edit],
        search: SearchConfig,
        texts: Sequence[str],
        stores: Sequence[Store],
        written: Sequence[LowRank],
    ) -> tuple[Found, int]:
        """The targets of all edits, and how many of them came from a store."""
        return targets.find(lm, edits, search, texts, stores, written=written)


def edit_layers(
    method: LocateAndEdit,
    lm: LM,
    edits: Sequence[Edit],
    *,
    retain: Sequence[str] = (),
    state: Patch | None = None,
    stores: Sequence[Store] = (),
) -> Patch:
    """Edit all facts in one batch, as `LocateAndEdit.edit` says."""
    record.refuse_none(edits)
    config, run, layers = method.config, _Run(), method.layers(lm)
    paths = [lm.arch.mlp_out[layer] for layer in layers]
    with ExitStack() as stack:
        with record.unedited(lm, state):
            with run.timed("statistics"):
                known = moments(lm, paths, config)
                extra = method.prepare(lm, paths, known, run.notes)
                kept = method.retained(lm, paths, retain)
            with run.timed("targets"):
                texts = ("", *method.texts(lm))
        stack.enter_context(record.resumed(lm, state))
        work = _Batch(method, lm, edits, layers, texts, known, extra, kept, state, stores, run)
        for number in range(config.rounds):
            if not work.round(number):
                break
    memory = {f"cat.keys.{path}": keys for path, keys in work.keys.items()} if method.remembers else {}
    old = {} if state is None else state.state
    memory = {name: remembered(old.get(name), keys.cpu()) for name, keys in memory.items()}
    info = {"targets_cached": run.cached, **run.notes, "facts": run.facts}
    return record.as_patch(lm, method.name, config, edits, work.entries, state, memory, run.seconds, info)


@dataclass(slots=True)
class _Run:
    """Bookkeeping of one call of `edit`: seconds of each phase, and what to tell of each fact."""

    seconds: dict[str, float] = field(default_factory=record.clock)
    cached: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Add the time spent in the block to a phase."""
        return record.timed(self.seconds, phase)


@dataclass(slots=True)
class _Batch:
    """One batch of facts on its way into the layers, in one round or more."""

    method: LocateAndEdit
    lm: LM
    edits: Sequence[Edit]
    layers: tuple[int, ...]
    texts: tuple[str, ...]
    known: Mapping[str, stats.Moments]
    extra: Mapping[str, Any]
    kept: Mapping[str, Tensor]
    """Keys of texts to retain, weighted, by module path."""
    state: Patch | None
    stores: Sequence[Store]
    run: _Run
    entries: dict[str, LowRank] = field(default_factory=dict)
    """What has been written, by module path."""
    keys: dict[str, Tensor] = field(default_factory=dict)
    """Keys of the first round, (d_k, N) by module path."""
    held: Tensor | None = None
    """Which of the keys of earlier batches are to stay as they are, (n,)."""

    def round(self, number: int) -> bool:
        """Seek targets on the model as it is, and write them layer by layer; whether there was anything to write."""
        method, lm, run, top = self.method, self.lm, self.run, self.layers[-1]
        each = method.seeks_each(lm)
        site = self._site()
        found: Found | None = None
        with ExitStack() as stack:
            for path, entry in self.entries.items():
                stack.enter_context(patch.hooked(lm.module(path), entry))
            again = self._unsure() if number else list(range(len(self.edits)))
            if not again:
                return False
            if not each:
                found = self._found(again, top, site, [*self.entries.values()], number == 0)
            new: dict[str, LowRank] = {}
            sweep = stack.enter_context(Sweep(lm, self.edits, self.texts, self.layers, bare_weight=method.bare_weight))
            for index, layer in enumerate(self.layers):
                if each:
                    below = [*self.entries.values(), *new.values()]
                    found = self._found(again, layer, site, below, number == 0 and index == 0)
                assert found is not None
                with run.timed("solve"):
                    reading = sweep.read(layer, layer if each else top)
                    left = self._left(found, again, reading, site)
                    part = left if each else left * method.share(len(self.layers) - index)
                    path = lm.arch.mlp_out[layer]
                    new[path] = self._solved(Problem(
                        lm, layer, path, reading.keys.T, part.T, reading, self.known.get(path),
                        self._past(path, reading), self.edits, self.extra.get(path),
                    ))  # fmt: skip
                    self.keys.setdefault(path, reading.keys.T.float())
                    if number == 0 and index == 0:
                        run.notes["shared_keys"] = shared_keys(reading.keys, part)
                    sweep.write(layer, new[path])
            with run.timed("solve"):
                final = sweep.read(top, top, bare_only=True)
                assert found is not None
                run.facts = told(run.facts, found, again, self._left(found, again, final, site))
        for path, entry in new.items():
            if path in self.entries:
                both = patch.combine(self.entries[path], entry)
                assert isinstance(both, LowRank)
                entry = both
            self.entries[path] = entry
        return True

    def _site(self) -> Site:
        """Where targets are sought: where the write gain is not linear, at the output of the edited projection."""
        linear = self.lm.arch.write_gain is not None
        return "module_out" if self.method.site == "layer_out" and not linear else self.method.site

    def _found(self, facts: Sequence[int], layer: int, site: Site, written: Sequence[LowRank], first: bool) -> Found:
        """Targets of some of the facts, sought on the model as it is."""
        with self.run.timed("targets"):
            where = search_config(self.method.config, layer, site)
            edits = [self.edits[i] for i in facts]
            found, cached = self.method.find(self.lm, edits, where, self.texts, self.stores, written)
            self.run.cached += cached if first else 0
            return found

    def _unsure(self) -> list[int]:
        """The facts that the model as it is does not hold by the search's own stop, in all of the search's rows."""
        config = self.method.config
        bound = -config.stop if config.stop_probability is None else math.log(config.stop_probability)
        rows = [
            row for i, edit in enumerate(self.edits) for row in rows_of(self.lm, edit, self.texts, i, essence=False)
        ]
        asked = [(row.ids[: len(row.ids) - len(row.target) + 1], [row.target]) for row in rows]
        least, bare = [0.0] * len(self.edits), [0.0] * len(self.edits)
        with self.run.timed("targets"), precision.autocast(self.lm, config.precision):
            for row, (found,) in zip(rows, forward.score(self.lm, asked), strict=True):
                lowest = min(found.logprobs)
                least[row.fact] = min(least[row.fact], lowest)
                if row.template == 0:
                    bare[row.fact] = lowest
        memory.give_back()
        taken = set(taken_up(bare, least, bound, max(_TAKEN_UP, math.ceil(config.again * len(least)))))
        return sorted(i for unit in tied(self.edits) if taken.intersection(unit) for i in unit)

    def _left(self, found: Found, facts: Sequence[int], reading: Reading, site: Site) -> Float[Tensor, "N d"]:
        """What is still to be written: nothing for facts that were not sought."""
        some = residuals(self.lm, found, reading.only(facts), site)
        left = some.new_zeros(len(self.edits), some.shape[1])
        left[list(facts)] = some
        return left

    def _past(self, path: str, reading: Reading) -> Float[Tensor, "d_k n"]:
        """Keys of earlier batches whose facts are not edited again, and of texts to retain."""
        past = past_keys(self.state, path, self.lm)
        if self.held is None:  # at the lowest layer
            self.held = still_held(past, reading.keys)
        past = past[:, self.held] if len(self.held) == past.shape[1] else past
        return torch.cat([past, self.kept[path].to(past)], 1) if path in self.kept else past

    def _solved(self, problem: Problem) -> LowRank:
        try:
            factors = self.method.rule(problem)
        except ValueError as error:
            raise RetconError(f"layer {problem.layer}: {error}") from error
        return LowRank(factors.U.float(), factors.V.float())


def moments(lm: LM, paths: Sequence[str], config: LocateAndEditConfig) -> Mapping[str, stats.Moments]:
    """The statistics of the projections at `paths`; none where C = I."""
    if config.statistics == "none":
        return {}
    return stats.moments(lm, paths, config.statistics, tokens_wanted=config.statistics_tokens, seed=config.seed)


def _templates(lm: LM, config: LocateAndEditConfig) -> tuple[str, ...]:
    words = [templates.SEARCH_WORDS[i % len(templates.SEARCH_WORDS)] for i in range(config.templates)]
    return templates.written(lm, words, length=config.template_length, seed=config.seed) if words else ()
