"""WISE's edits on their way into side memories, one after the other."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, patch, progress, tokens
from retcon.lm import LM
from retcon.methods.memories import name_of
from retcon.methods.record import timed
from retcon.methods.retained import retained_ids
from retcon.methods.wise.config import WISEConfig
from retcon.methods.wise.rows import Replay, Row, Site, clean_batches, edit_rows, prompts_of
from retcon.methods.wise.shards import Margins, Shards, generator
from retcon.methods.wise.train import scored, train
from retcon.patch import Gated, Patch
from retcon.patch.gated import Memory
from retcon.requests import Edit, from_dict, text_of, to_dict

__all__ = ["Run"]

_WORDS = ("I", "You", "Because", "Yes", "Q: ")
_LENGTHS = (5, 10)
"""Tokens that the model adds to each word, for the context templates."""
_OPENINGS = (
    "The", "In", "A", "When", "My", "How to", "There is", "What is", "We", "If", "Today", "They", "Please", "Once",
    "Some", "Write",
)  # fmt: skip
"""First words of the ordinary texts that the model writes where none are given."""
_OPENING_LENGTH = 12
_KEPT = 32
"""Ordinary texts that a patch keeps, to go on with."""
_ORDINARY_NORM = 20.0
"""Norm of an ordinary output that the published margins are taken to be meant for: an edited prompt is to be moved as
far (20) as the projection usually writes, an ordinary one by a quarter of it (5)."""


class Run:
    """One call of `edit`."""

    def __init__(
        self,
        config: WISEConfig,
        lm: LM,
        path: str,
        activation: str,
        edits: Sequence[Edit],
        retain: Sequence[str],
        state: Patch | None,
        old: Gated | None,
        seconds: dict[str, float],
    ) -> None:
        self.config, self.lm, self.edits, self.seconds = config, lm, edits, seconds
        making = {} if old is None else dict(old.making)
        retained_ids(lm, retain)  # for its errors
        self.site = Site(
            layer=lm.arch.mlp_out.index(path), path=path, skipped=old is not None, score=config.score,
            activation=activation, long_prompt=config.long_prompt,
            margins=Margins(config.alpha, config.beta, config.gamma), scope=config.scope,
            margin_tokens=config.margin_tokens, lr=config.lr, steps=config.steps, clip=config.clip, stop=config.stop,
            stop_change=config.stop_change, precision=config.precision, stop_on=config.stop_on,
        )  # fmt: skip
        with timed(seconds, "statistics"):
            self.templates: list[str] = making.get("templates") or _templates(lm)
            self.ordinary: list[str] = list(retain) or making.get("ordinary") or _ordinary(lm, config.seed)
            self.kept: list[str] = making.get("ordinary") or self.ordinary[:_KEPT]
            self.scale: float = making["scale"] if "scale" in making else self._scale()
        self.site = replace(self.site, margins=self.site.margins.scaled(self.scale))
        self.trained: int = making.get("trained", 0)
        merge_freq = config.merge_freq
        d_out, d_in = patch.describe_base(lm.model, [path]).weights[path].shape
        self.shards = Shards(
            (d_out, d_in), config.seed, config.mask_ratio, config.save_freq, merge_freq, config.density, config.variant
        )
        if old is not None:
            self.shards.restore([old.memory(number) for number in range(old.rank)], making.get("opened", 0))
        earlier = [] if state is None else [record for step in state.history for record in step.edits]
        self.known = {name_of(record): from_dict(record) for record in earlier if text_of(record) is not None}
        self.known |= {name_of(to_dict(edit)): edit for edit in edits}

    def written(self) -> tuple[Gated, dict[str, Any]]:
        """The memories with the edits in them, and what there is to tell of it."""
        facts = []
        with progress.task("facts", len(self.edits)) as advance:
            for edit in self.edits:
                facts.append(self._write(edit))
                self.shards.settle(self._threshold, end=False)
                advance(1)
            self.shards.settle(self._threshold, end=True)
        memories, config = self.shards.all(), self.config
        entry = Gated.made(
            memories, self.shards.size, score=config.score, activation=self.site.activation, ratio=config.act_ratio,
            order=config.order, long_prompt=config.long_prompt,
            making={
                "templates": self.templates, "ordinary": self.kept, "scale": self.scale,
                "opened": self.shards.opened, "trained": self.trained,
            },
        )  # fmt: skip
        told = [
            {"role": memory.role, "edits": len(memory.names), "threshold": round(memory.threshold, 5)}
            for memory in memories
        ]
        info = {"targets_cached": 0, "margin_scale": round(self.scale, 5), "memories": told, "facts": facts}
        return entry, {"retain_hits": round(self._hits(entry), 5), **info}

    def _write(self, edit: Edit) -> dict[str, Any]:
        """Train the open memory on an edit."""
        name, config, live = name_of(to_dict(edit)), self.config, self.shards.open()
        with timed(self.seconds, "targets"):
            drawn = generator(config.seed, "ordinary", self.trained)
            numbers = torch.randint(len(self.ordinary), (config.locality_rows,), generator=drawn).tolist()
            against = prompts_of(self.lm, [self.ordinary[number] for number in numbers])
            rows = self._rows(edit, subject=config.scope == "subject")
            found = train(self.lm, self.site, rows, against, live.mask, live.delta, self._replayed(edit, live))
        self.trained += 1
        self.shards.learn(name, found.delta, self._own(found.inside))
        return {
            "id": name,
            "loss": round(found.loss, 5),
            "evaluations": found.evaluations,
            "inside": round(float(found.inside.mean()), 5),
            "outside": round(float(found.outside.mean()), 5),
        }

    def _rows(self, edit: Edit, *, subject: bool = False) -> list[Row]:
        return edit_rows(self.lm, edit, self.templates[: self.config.templates], subject=subject)

    def _replayed(self, edit: Edit, live: Memory) -> Replay:
        """An edit of each closed memory, and one of the open memory's own, drawn anew for each edit that is written.

        An earlier edit of the very prompt is not held out, and those whose prompts are withheld cannot be asked again.
        Where no memory is closed there is nothing to be held apart from, and nothing is replayed.
        """
        if not self.config.replay:
            return Replay()
        drawn = generator(self.config.seed, "replay", self.trained)
        others = [rows for memory in self.shards.memories if (rows := self._drawn(memory, drawn, edit.text))]
        return Replay(others, self._drawn(live, drawn)) if others else Replay()

    def _drawn(self, memory: Memory, drawn: torch.Generator, but: str | None = None) -> list[Row]:
        """The rows of one of a memory's edits, though not of the prompt `but`; none where there is no such edit."""
        known = [self.known[name] for name in dict.fromkeys(memory.names) if name in self.known]
        known = [edit for edit in known if edit.text != but]
        return self._rows(known[int(torch.randint(len(known), (1,), generator=drawn))]) if known else []

    def _own(self, scores: Float[Tensor, " k"]) -> float:
        """An edit's score from those of its rows."""
        return float(scores.mean() if self.config.threshold_stat == "mean" else scores.min())

    def _threshold(self, memory: Memory) -> float:
        """The least score of the edits in a memory, as it now is; its old one where that is to stay.

        Edits whose prompts are withheld cannot be scored again; they keep the threshold from rising.
        """
        mine = list(dict.fromkeys(memory.names))
        edits = [self.known[name] for name in mine if name in self.known]
        if not self.config.recalibrate or not edits:
            return memory.threshold
        most = math.inf if len(edits) == len(mine) else memory.threshold
        with timed(self.seconds, "solve"):
            groups = [self._rows(edit) for edit in edits]
            scores = scored(self.lm, self.site, [row for rows in groups for row in rows], memory.delta)
            parts = scores.split([len(rows) for rows in groups])
        return min(most, *(self._own(part) for part in parts))

    def _scale(self) -> float:
        """What the margins are multiplied by."""
        if self.config.margin_scale != "auto":
            return float(self.config.margin_scale)
        rows = prompts_of(self.lm, self.kept)
        norms = [clean.gave[clean.prompt].float().norm(dim=-1) for _, clean in clean_batches(self.lm, self.site, rows)]
        return float(torch.cat([part.cpu() for part in norms]).median()) / _ORDINARY_NORM or 1.0

    def _hits(self, entry: Gated) -> float:
        """The share of ordinary prompts that some memory takes."""
        here = entry.to(self.lm.device, torch.promote_types(self.lm.dtype, torch.float32))
        rows = prompts_of(self.lm, self.ordinary[: 2 * _KEPT])
        with timed(self.seconds, "statistics"), torch.no_grad():
            chosen = [
                here.choose(clean.read, clean.gave, clean.prompt).cpu()
                for _, clean in clean_batches(self.lm, self.site, rows)
            ]
        return float((torch.cat(chosen) >= 0).float().mean())


def _templates(lm: LM) -> list[str]:
    """Contexts in which an edit is trained too: words that the model continues greedily, without braces."""
    starts = [tokens.encode(lm, word) for word in _WORDS]
    found = forward.greedy(lm, starts, max_new_tokens=max(_LENGTHS), stop_at_eos=False, label="templates")
    out = []
    for length in _LENGTHS:
        for word, ids in zip(_WORDS, found, strict=True):
            text = (word + tokens.decode(lm, ids[:length])).replace("{", "").replace("}", "")
            out.append(" ".join(text.split()) + ". ")
    return out


def _ordinary(lm: LM, seed: int) -> list[str]:
    """Beginnings of texts that the model writes itself."""
    starts = [tokens.encode(lm, word) for word in _OPENINGS]
    found = forward.sample(
        lm, starts, max_new_tokens=_OPENING_LENGTH, seed=seed, stop_at_eos=False, label="ordinary texts"
    )
    return [word + tokens.decode(lm, ids) for word, ids in zip(_OPENINGS, found, strict=True)]
