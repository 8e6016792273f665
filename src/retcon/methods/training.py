"""The one trainer of the methods that descend on a change itself: its steps, and the schedules of the editors.

A change is a few leaf tensors and the patch entries made of them. It acts through hooks, so the gradient reaches these
leaves alone: no weight of the model is written, and none is given a gradient.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from retcon import forward, progress
from retcon.arch import frozen
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.training_rows import (
    BATCH_TOKENS,
    Change,
    Entered,
    Row,
    Text,
    logits_at,
    lowest,
    misses,
    states_below,
)
from retcon.methods.unlearning.objectives import divergence
from retcon.precision import Precision, autocast, kernels, loss_scale

__all__ = ["Schedule", "Steps", "Trained", "TrainingConfig", "descending", "train"]

Schedule = Literal["depth", "breadth"]
"""`depth`: each request to convergence, in turn; `breadth`: passes over all requests in mini-batches."""

_PARTS, _MOST = 10, 100
"""Mini-batches of a pass, and the most requests of one, where no size is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What all methods that train share."""

    layers: tuple[int, ...] | None = None
    """Layers to train."""
    schedule: Schedule = "depth"
    """`depth`: each request to convergence, one after the other, the classic; `breadth`: mini-batches over all
    requests, shuffled anew for each pass."""
    steps: int = 25
    """The most steps on each request; with `breadth`, the most passes over all of them."""
    lr: float = 5e-4
    """Adam's learning rate."""
    batch: int | None = None
    """Requests of a mini-batch, with `breadth`; by default a tenth of them, 100 at most, so that a pass makes ten steps
    or more where there are ten requests. By batches of 100, as published, a hundred facts get one step a pass."""
    stop: float = 1e-2
    """No step is made on a loss below this; a request is then finished, or, by the mean of a pass, all of them."""
    eos: bool = False
    """Whether the end token follows each target and is learned too, so that the model stops there."""
    retain_loss: Literal["kl", "nll"] = "kl"
    """What texts to keep are held by: the divergence from the model's own predictions, or their likelihood."""
    retain_weight: float = 1.0
    """Weight of that loss, where there are such texts."""
    retain_batch: int = 4
    """Texts that are looked at in each step."""
    retain_tokens: int = 40
    """Tokens of the model's own answer to a text to keep that are kept with it, at most."""
    precision: Precision = "float32"
    """Dtype of the matrix products; the change, its gradient and Adam are fp32."""
    seed: int = 0
    """Seed of all that is drawn."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How training went, for each of N requests."""

    loss: Float[Tensor, " N"]
    """The objective when it was last looked at, before the step that followed."""
    evaluations: Int[Tensor, " N"]
    """How often it was looked at."""


def train(
    lm: LM, rows: Sequence[Row], change: Change, config: TrainingConfig, *, retain: Sequence[Text] = ()
) -> Trained:
    """Train a change until the model gives the rows' targets.

        J = 1/|B| sum_{i in B} 1/n_i sum_t -log p(y_it)  [+ w KL(p0 || p) or + w NLL on the texts to keep]

    B is one row with `depth`, which begins Adam anew for each, and a mini-batch with `breadth`. There the order of the
    list decides nothing: rows are put in order by their ids before they are shuffled.

    Args:
        lm: the model, with any patch already on; its flags, hooks and weights are afterwards as they were.
        rows: the requests.
        change: what is trained, in place.
        config: options.
        retain: texts to keep, each of two tokens at least.

    Raises:
        RetconError: an option makes no sense, or the loss is not finite any more.
    """
    _check(config)
    with descending(lm, config.precision):
        trainer = _Trainer(lm, rows, change, config, retain)
        (trainer.in_depth if config.schedule == "depth" else trainer.in_breadth)()
    return Trained(trainer.loss, trainer.evaluations)


def _check(config: TrainingConfig) -> None:
    if min(config.steps, config.retain_batch, 1 if config.batch is None else config.batch) < 1:
        raise RetconError("steps, batch and retain_batch are counts; give at least 1")
    if not config.lr > 0:
        raise RetconError(f"a learning rate of {config.lr:g} trains nothing; give lr above zero")


@contextmanager
def descending(lm: LM, precision: Precision) -> Iterator[None]:
    """Run the model for gradients, also where the caller wants none; flags and modes are afterwards as they were."""
    with torch.enable_grad(), frozen(lm.model), autocast(lm, precision), kernels(lm):
        yield


class Steps:
    """Steps of an optimiser on a change's leaves, each on a gradient that is added up part by part."""

    def __init__(self, lm: LM, change: Change, optimiser: torch.optim.Optimizer) -> None:
        self._change, self._optimiser = change, optimiser
        self._scale = loss_scale(lm)

    def add(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of a part of the loss."""
        (self._scale * loss).backward(inputs=list(self._change.leaves))

    def take(self, clip: float | None = None) -> bool:
        """Make one step, on a gradient whose norm is at most `clip` where one is given.

        Returns:
            Whether it was made; with `clip`, none is made on a gradient that is not finite.
        """
        leaves = list(self._change.leaves)
        for leaf in leaves:
            if leaf.grad is not None and self._scale != 1:
                leaf.grad.div_(self._scale)
        finite = clip is None or bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(leaves, clip)))
        if finite:
            self._optimiser.step()
            self._change.confine()
        self.drop()
        return finite

    def drop(self) -> None:
        """Forget the gradient."""
        self._optimiser.zero_grad()


class _Trainer:
    """One call of `train`: its rows, what runs below the change, and how each row stands."""

    def __init__(
        self, lm: LM, rows: Sequence[Row], change: Change, config: TrainingConfig, retain: Sequence[Text]
    ) -> None:
        self._lm, self._rows, self._change, self._config = lm, rows, change, config
        self._lengths = [len(row.ids) for row in rows]
        entry = lowest(lm, change.entries())
        self._retain = _Texts(retain, config.seed, _entered(lm, retain, entry)) if retain else None
        self._entered = _entered(lm, rows, entry)
        self.loss = torch.zeros(len(rows), dtype=torch.float64)
        self.evaluations = torch.zeros(len(rows), dtype=torch.long)

    def in_depth(self) -> None:
        """Each row to convergence, in turn."""
        with progress.task("training", len(self._rows)) as advance:
            for i in range(len(self._rows)):
                steps = self._adam()
                for _ in range(self._config.steps):
                    if self._step([i], steps) < self._config.stop:
                        break
                advance(1)

    def in_breadth(self) -> None:
        """Passes over all rows, each in an order of its own, which the caller's order has no part in."""
        n, config = len(self._rows), self._config
        size = min(_MOST, max(1, n // _PARTS)) if config.batch is None else config.batch
        by_ids = sorted(range(n), key=lambda i: (self._rows[i].ids, self._rows[i].target))
        generator = torch.Generator().manual_seed(config.seed)
        steps = self._adam()
        with progress.task("training", config.steps * n) as advance:
            for done in range(1, config.steps + 1):
                order = [by_ids[i] for i in torch.randperm(n, generator=generator).tolist()]
                total = 0.0
                for start in range(0, n, size):
                    part = order[start : start + size]
                    total += self._step(part, steps) * len(part)
                    advance(len(part))
                if total / n < config.stop:
                    advance((config.steps - done) * n)
                    break

    def _step(self, batch: Sequence[int], steps: Steps) -> float:
        """The mean loss of a mini-batch, and, unless it is below the stop, one step on it."""
        order = sorted(batch, key=lambda i: (self._lengths[i], self._rows[i].ids, self._rows[i].target))
        for part in forward.batches(order, self._lengths, BATCH_TOKENS):
            losses = self._losses(part)
            steps.add(losses.sum() / len(batch))
            self.loss[part] = losses.detach().double().cpu()
            self.evaluations[part] += 1
        loss = float(self.loss[list(batch)].mean())
        if not math.isfinite(loss):
            raise RetconError(f"the loss of training is {loss}; give a smaller lr than {self._config.lr:g}")
        if loss < self._config.stop:
            steps.drop()
            return loss
        if self._retain is not None:
            steps.add(self._config.retain_weight * self._drift(*self._retain.next(self._config.retain_batch)))
        steps.take()
        return loss

    def _adam(self) -> Steps:
        """Steps of Adam from its start, without weight decay (Kingma and Ba, arXiv 1412.6980)."""
        return Steps(self._lm, self._change, torch.optim.Adam(list(self._change.leaves), lr=self._config.lr))

    def _losses(self, part: Sequence[int]) -> Float[Tensor, " n"]:
        """The mean cross-entropy of each row's target tokens."""
        entered = _part(self._entered, part)
        found = misses(self._lm, [self._rows[i] for i in part], self._change.entries(), entered)
        return torch.stack([miss.mean() for miss in found])

    def _drift(self, texts: Sequence[Text], entered: Entered | None) -> Float[Tensor, ""]:
        """What the change does to texts to keep, the mean over their tokens."""
        keeps = self._config.retain_loss == "kl"
        ids, ends = [text.ids for text in texts], [text.end for text in texts]
        at = [(r, column) for r, row in enumerate(ids) for column in range(len(row) - (not keeps))]
        now = logits_at(self._lm, ids, at, self._change.entries(), entered, ends)
        if not keeps:
            return F.cross_entropy(now, torch.tensor([t for row in ids for t in row[1:]], device=now.device))
        with torch.no_grad():
            before = logits_at(self._lm, ids, at, {}, entered, ends)
        return divergence(before, now).mean()


class _Texts:
    """Texts to keep, a few at a time: none comes again before all have come."""

    def __init__(self, texts: Sequence[Text], seed: int, entered: Entered | None = None) -> None:
        self._texts, self._entered, self._queue = texts, entered, list[int]()
        self._generator = torch.Generator().manual_seed(seed)

    def next(self, n: int) -> tuple[list[Text], Entered | None]:
        """The next `n` texts, or all where there are fewer, and what the lowest trained block reads in them."""
        found = []
        for _ in range(min(n, len(self._texts))):
            self._queue = self._queue or torch.randperm(len(self._texts), generator=self._generator).tolist()
            found.append(self._queue.pop())
        return [self._texts[i] for i in found], _part(self._entered, found)


def _entered(lm: LM, rows: Sequence[Row | Text], layer: int) -> Entered | None:
    """What the block of a layer reads in each row; None where it is not to be kept."""
    states = states_below(lm, [row.ids for row in rows], layer, [row.end for row in rows])
    return None if states is None else Entered(layer, states)


def _part(entered: Entered | None, rows: Sequence[int]) -> Entered | None:
    """The same of some of the rows."""
    return None if entered is None else Entered(entered.layer, [entered.states[i] for i in rows])
