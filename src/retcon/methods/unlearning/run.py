"""One run of unlearning: steps of AdamW down an objective, watched for what they forget and for what they harm.

Every draw depends on the seed and the number of the step alone, and every look writes the journal; so a run that was
stopped goes on from its last look to the bits of an undisturbed one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from retcon import forward, progress
from retcon.lm import LM
from retcon.methods.training import Steps, descending
from retcon.methods.training_rows import BATCH_TOKENS, Change, Row
from retcon.methods.unlearning.batches import Material, drawn, nlls, order_of, read
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.journal import Journal
from retcon.methods.unlearning.objectives import LossInputs, Objective, Sequences, retain_term, weights
from retcon.patch import Entry

__all__ = ["Outcome", "Reading", "Run"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the model stands after so many steps; probabilities are geometric means over tokens, meaned over items."""

    step: int
    loss: float | None
    """Of the last step."""
    forget: float
    """Probability of the answers to forget, or, where none is known, one less that of the refusals."""
    utility: float | None
    """Probability of what is to stay; None where nothing is."""
    perplexity: float | None
    """Of what is to stay; where nothing is, of ordinary text."""

    @property
    def finite(self) -> bool:
        """Whether all of it is a number."""
        return all(value is None or math.isfinite(value) for value in asdict(self).values())


@dataclass(slots=True)
class Outcome:
    """How a run went."""

    readings: list[Reading]
    """The first is of the model before training."""
    stopped: str = "all steps are made"
    """Why it ended."""
    steps: int = 0
    """Steps made."""
    best: int = 0
    """After how many steps the model was as it is handed back: the answers were least likely there, of all looks at
    which what is to stay was unharmed. 0: there was no such look, and the model is handed back as it was."""
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    """Labelled tokens that steps have been made on: of what is to be forgotten, of what is to stay."""

    def told(self) -> dict[str, Any]:
        """The outcome in JSON types; what is no number is null."""
        readings = [{key: _told(value) for key, value in asdict(reading).items()} for reading in self.readings]
        tokens = {"forget": self.tokens[0], "retain": self.tokens[1]}
        return {**asdict(self), "tokens": tokens, "readings": readings}


class Run:
    """The training of one change, in place, by one objective.

    Args:
        lm: the model, with any patch already on.
        objective: what is descended on.
        config: options.
        change: what is trained.
        material: the rows.
        journal: where the run keeps what it needs to go on.
        layer: whose states the objective reads, if it reads states.
    """

    def __init__(
        self,
        lm: LM,
        objective: Objective,
        config: UnlearningConfig,
        change: Change,
        material: Material,
        journal: Journal,
        layer: int | None = None,
    ) -> None:
        self._lm, self._objective, self._config, self._change = lm, objective, config, change
        self._material, self._journal, self._layer = material, journal, layer
        self._main = material.side(objective.sides[0])
        self._lengths = [len(row.target) for row in self._main]
        self._per_epoch = -(-len(self._main) // config.batch)
        self._total = config.epochs * self._per_epoch
        self._optimiser = torch.optim.AdamW(list(change.leaves), lr=config.lr, weight_decay=config.weight_decay)
        self._steps = Steps(lm, change, self._optimiser)
        self._reference: dict[str, Tensor] = {}
        self._best: list[Tensor] = []
        self._outcome = Outcome([])

    def run(self, doing: str = "unlearning") -> Outcome:
        """Train, and bring the change to where it was best; with `best` 0 it is not to be used.

        Args:
            doing: what a terminal shows beside the steps.
        """
        with descending(self._lm, self._config.precision), progress.task(doing, self._total) as advance:
            if self._objective.reference == "nll":
                sides = {name: self._material.side(name) for name in self._objective.sides}
                self._reference = {name: nlls(self._lm, rows, {}) for name, rows in sides.items()}
            if not self._resumed():
                self._outcome.readings.append(self._look(None))
            advance(self._outcome.steps)
            for number in range(self._outcome.steps, self._total):
                reason = self._advanced(number)
                if reason is not None:
                    self._outcome.stopped = reason
                    advance(self._total - number)
                    break
                advance(1)
        self._put(self._best)
        return self._outcome

    def _advanced(self, number: int) -> str | None:
        """Make one step, and look where a look is due; why training ends, if it does."""
        loss = self._step(number)
        if loss is None:
            return "the loss or its gradient is not finite any more"
        self._outcome.steps = number + 1
        if self._outcome.steps % self._config.eval_every and self._outcome.steps < self._total:
            return None
        reason = self._judged(self._look(loss))
        if reason is None:
            self._keep()
        return reason

    # --------------------------------------------------------------------------------------------- steps

    def _step(self, number: int) -> float | None:
        """One step; its loss, or None where that or its gradient is not finite: then nothing is changed."""
        config, kept = self._config, self._material.kept
        batch = self._batch(number)
        texts = drawn(len(kept), config.retain_batch, number, config.seed, config.retain_sampling) if kept else []
        counts = [sum(self._lengths[i] for i in batch), sum(len(kept[i].target) for i in texts)]
        forget, retain = weights(config, *counts)
        total = self._add_forget(batch, forget) if forget else 0.0
        if retain and texts:
            total += self._add_retain(texts, retain)
        else:
            counts[1] = 0
        for group in self._optimiser.param_groups:
            group["lr"] = config.lr * self._rate(number)
        if not math.isfinite(total):
            self._steps.drop()
            return None
        if not self._steps.take(config.clip):
            return None
        self._outcome.tokens = [before + now for before, now in zip(self._outcome.tokens, counts, strict=True)]
        return total

    def _batch(self, number: int) -> list[int]:
        """The questions of a step: each comes once a pass, in an order of the pass's own."""
        epoch, place = divmod(number, self._per_epoch)
        start = place * self._config.batch
        return order_of(len(self._main), self._config.seed, "forget", epoch)[start : start + self._config.batch]

    def _rate(self, number: int) -> float:
        """The share of the learning rate that a step gets."""
        rising = round(self._config.warmup * self._per_epoch)
        if number < rising:
            return (number + 1) / rising
        return 1.0 if self._config.decay == "constant" else (self._total - number) / (self._total - rising)

    def _add_forget(self, batch: Sequence[int], weight: float) -> float:
        """Add the gradient of L_f, part by part; its weighted value."""
        objective, config = self._objective, self._config
        rows = {name: self._material.side(name) for name in objective.sides}
        sizes = [sum(len(side[i].ids) for side in rows.values()) for i in range(len(self._main))]
        whole, total = max(objective.units([self._lengths[i] for i in batch], config), 1), 0.0
        for part in _parts(batch, sizes):
            share = objective.units([self._lengths[i] for i in part], config) / whole
            sides = {name: self._read(name, [side[i] for i in part], part) for name, side in rows.items()}
            loss = weight * share * objective.forget(LossInputs(**sides), config)
            total += float(loss.detach())
            self._steps.add(loss)
        return total

    def _read(self, name: str, rows: Sequence[Row], part: Sequence[int]) -> Sequences:
        """One side of L_f, with what it must know of the model before training."""
        objective = self._objective
        return read(
            self._lm,
            rows,
            self._change.entries(),
            layer=self._layer if objective.reads == "states" else None,
            compared=objective.reference == "logits",
            reference_nll=self._reference[name][list(part)].to(self._lm.device) if self._reference else None,
        )

    def _add_retain(self, texts: Sequence[int], weight: float) -> float:
        """Add the gradient of L_r, part by part; its weighted value."""
        kept, embeds = self._material.kept, self._config.retain_loss == "embed"
        layer, compared = self._layer if embeds else None, self._config.retain_loss != "nll"
        units = [1 if embeds else len(row.target) for row in kept]
        whole, total = sum(units[i] for i in texts), 0.0
        for part in _parts(texts, [len(row.ids) for row in kept]):
            side = read(self._lm, [kept[i] for i in part], self._change.entries(), layer=layer, compared=compared)
            loss = weight * sum(units[i] for i in part) / whole * retain_term(side, self._config)
            total += float(loss.detach())
            self._steps.add(loss)
        return total

    # --------------------------------------------------------------------------------------------- looks

    def _look(self, loss: float | None) -> Reading:
        """How the change stands, on some of the questions and of the texts to keep, always the same ones."""
        with torch.no_grad():
            entries = self._change.entries()
        forget, _ = self._watched(self._material.answers or self._main, entries)
        forget = forget if self._material.answers else 1 - forget
        utility, perplexity = self._watched(self._material.kept or self._material.ordinary, entries)
        return Reading(self._outcome.steps, loss, forget, utility if self._material.kept else None, perplexity)

    def _watched(self, rows: Sequence[Row], entries: Mapping[str, Entry]) -> tuple[float, float]:
        """The mean probability of rows' targets, and their perplexity."""
        chosen = [rows[i] for i in sorted(order_of(len(rows), self._config.seed, "watched")[: self._config.watched])]
        sums, counts = nlls(self._lm, chosen, entries), torch.tensor([len(row.target) for row in chosen])
        return float((-sums / counts).exp().mean()), float((sums.sum() / counts.sum()).exp())

    def _judged(self, now: Reading) -> str | None:
        """Note a look, keep the change if it is the best so far, and say why training ends, if it does."""
        config, first = self._config, self._outcome.readings[0]
        self._outcome.readings.append(now)
        if not now.finite:
            return "the model's predictions are not finite any more"
        if now.utility is not None and now.utility < (1 - config.tolerance) * (first.utility or 0.0):
            return f"what is to stay has lost more than {config.tolerance:.0%} of its probability"
        if now.perplexity is not None and now.perplexity > config.most_perplexity * (first.perplexity or 0.0):
            harmed = "what is to stay" if self._material.kept else "ordinary text"
            return f"{harmed} has more than {config.most_perplexity:g} times its perplexity"
        least = min((reading.forget for reading in self._outcome.readings[1:-1]), default=math.inf)
        if now.forget < least:
            self._outcome.best = now.step
            self._best = [leaf.detach().clone() for leaf in self._change.leaves]
        if config.goal is not None and now.forget < config.goal:
            return f"the answers are less likely than {config.goal:g} a token"
        return None

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        """Give the leaves other values, if there are any."""
        for leaf, value in zip(self._change.leaves, values, strict=False):
            leaf.copy_(value)

    # --------------------------------------------------------------------------------------------- the journal

    def _keep(self) -> None:
        """Write all that the next step depends on."""
        leaves = {f"leaf.{i}": leaf for i, leaf in enumerate(self._change.leaves)}
        best = {f"best.{i}": leaf for i, leaf in enumerate(self._best)}
        moments = {
            f"optimiser.{i}.{name}": tensor
            for i, state in self._optimiser.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        notes = {**asdict(self._outcome), "readings": [asdict(reading) for reading in self._outcome.readings]}
        self._journal.write({**leaves, **best, **moments}, notes)

    def _resumed(self) -> bool:
        """Go on from the journal, if there is one."""
        found = self._journal.read()
        if found is None:
            return False
        tensors, notes = found
        self._outcome = Outcome(**{**notes, "readings": [Reading(**reading) for reading in notes["readings"]]})
        leaves = list(self._change.leaves)
        self._put([tensors[f"leaf.{i}"] for i in range(len(leaves))])
        if self._outcome.best:
            self._best = [tensors[f"best.{i}"].to(leaf) for i, leaf in enumerate(leaves)]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, i, what = name.split(".")
                state.setdefault(int(i), {})[what] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        return True


def _parts(chosen: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Rows cut into parts that one forward takes."""
    return list(forward.batches(sorted(chosen, key=lambda i: (sizes[i], i)), sizes, BATCH_TOKENS))


def _told(value: float | None) -> float | None:
    """A number as JSON has it."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
