"""GRACE's edits on their way into a memory: decided one after the other, their values sought together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.lm import LM
from retcon.methods.grace.rows import Question, Seen, Site, question
from retcon.methods.grace.state import Decision, Memory
from retcon.methods.grace.values import descend, measured
from retcon.methods.record import timed
from retcon.requests import from_dict, text_of
from retcon.storage import digest

__all__ = ["Run"]


@dataclass(slots=True)
class _Waiting:
    """An edit whose value is still to be sought."""

    number: int
    decision: Decision
    start: Tensor
    others: list[str]
    """Ids of the key's other edits, which a new value must not lose."""


@dataclass(slots=True)
class Run:
    """Edits on their way into a memory, one after the other; their values together as long as none needs another's."""

    lm: LM
    site: Site
    memory: Memory
    asked: list[Question]
    seen: Seen
    names: list[str]
    seconds: dict[str, float]
    """Time spent, by phase."""
    cold: int | None = None
    """Seed of values that begin at random; None for those that begin at the projection's own output."""
    end_token: bool = False
    """Whether answers close with the end token."""
    values: list[Tensor | None] = field(default_factory=list)
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Records of the state's edits, by id."""
    facts: list[dict[str, Any]] = field(default_factory=list)
    """One record an edit."""
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    """By key."""

    def take(self, number: int) -> None:
        """Decide on an edit, and let it wait for its value."""
        name = self.names[number]
        with timed(self.seconds, "solve"):
            decision = self.memory.add(self.seen.queries[number], self.asked[number].label, name)
        if decision.key in self._waiting or any(old in self._waiting for _, old in decision.copies):
            self.flush()
        self.values += [None] * (len(self.memory.labels) - len(self.values))
        for new, old in decision.copies:
            source = self.values[old]
            assert source is not None
            self.values[new] = source.clone()
        known = self.values[decision.key]
        start = self._begun(number) if decision.fresh or known is None else known
        answered = zip(self.memory.names, self.memory.owners, strict=True)
        others = [other for other, owner in answered if owner == decision.key and other != name]
        self._waiting[decision.key] = _Waiting(number, decision, start, others)
        self.facts.append({"id": name, "case": decision.case, "key": decision.key, "distance": _finite(decision)})
        if decision.dropped:
            self.facts[-1]["replaces"] = list(decision.dropped)

    def flush(self) -> None:
        """Seek the values of all edits that wait."""
        waiting = list(self._waiting.values())
        if not waiting:
            return
        with timed(self.seconds, "targets"):
            asked = [self.asked[item.number] for item in waiting]
            found = descend(self.lm, self.site, asked, torch.stack([item.start for item in waiting]))
            for place, item in enumerate(waiting):
                self.values[item.decision.key] = found.values[place]
                self.facts[item.number] |= {
                    "loss": round(float(found.loss[place]), 5),
                    "held": bool(found.held[place]),
                    "evaluations": int(found.evaluations[place]),
                }
                lost = self._lost(item, found.values[place])
                if lost:
                    self.facts[item.number]["lost"] = lost
        self._waiting.clear()

    def _begun(self, number: int) -> Float[Tensor, " d_out"]:
        """A value to begin with."""
        warm = self.seen.outputs[number]
        if self.cold is None:
            return warm
        seed = int(digest(self.cold, self.names[number])[:15], 16)
        return torch.rand(warm.shape, generator=torch.Generator().manual_seed(seed))

    def _lost(self, item: _Waiting, value: Float[Tensor, " d_out"]) -> list[str]:
        """Ids of a key's other edits that its new value does not answer."""
        known = {name: found for name in item.others if (found := self._question(name)) is not None}
        if not known:
            return []
        held = measured(self.lm, self.site, list(known.values()), value.expand(len(known), -1)).held.tolist()
        return [name for name, holds in zip(known, held, strict=True) if not holds]

    def _question(self, name: str) -> Question | None:
        """What an edit of that id asks; None where nothing is known of it any more."""
        if name in self.names:
            return self.asked[self.names.index(name)]
        record = self.earlier.get(name)
        if record is None or text_of(record) is None:  # a record may withhold its prompt
            return None
        return question(self.lm, from_dict(record), end=self.end_token)


def _finite(decision: Decision) -> float | None:
    return round(decision.distance, 5) if math.isfinite(decision.distance) else None
