"""The one trainer of the methods that descend on a change itself: rows, objectives, schedules, Adam.

A change is a few leaf tensors and the patch entries made of them. It acts through hooks, so the gradient reaches these
leaves alone: no weight of the model is written, and none is given a gradient.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retcon import forward, hooks, memory, progress, tokens
from retcon.arch import frozen
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.patch import Entry
from retcon.precision import Precision, autocast, kernels
from retcon.requests import Edit

__all__ = [
    "Adam",
    "Change",
    "Objective",
    "Row",
    "Schedule",
    "Trained",
    "TrainingConfig",
    "rows_of",
    "texts_of",
    "train",
]

Objective = Literal["masked", "last_position"]
"""`masked`: each token of the target where it is predicted; `last_position`: all of them at the prompt's last token."""
Schedule = Literal["depth", "breadth"]
"""`depth`: each request to convergence, in turn; `breadth`: passes over all requests in mini-batches."""

_LONGEST = 64
"""Tokens of a text to keep that are looked at."""
_BATCH_TOKENS = 1024
"""Tokens of one forward, padding included; a mini-batch that is larger adds up the gradients of several."""
_KEPT_BYTES = 2**29
"""The most that states below the lowest trained layer may take, so that these layers run once."""


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
    batch: int = 100
    """Requests of a mini-batch, with `breadth`."""
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
    precision: Precision = "float32"
    """Dtype of the matrix products; the change, its gradient and Adam are fp32."""
    seed: int = 0
    """Seed of all that is drawn."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request: what runs, and which tokens are wanted where."""

    ids: list[int]
    at: list[int]
    """For each token of the target, the index in `ids` at which it is to be predicted."""
    target: list[int]


class Change(Protocol):
    """What is trained."""

    @property
    def leaves(self) -> Sequence[Tensor]:
        """The trained tensors; they want gradients."""

    def entries(self) -> Mapping[str, Entry]:
        """By module path, what they add; gradients flow through it to the leaves."""

    def confine(self) -> None:
        """After a step, bring the leaves back to where they are allowed to be."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How training went, for each of N requests."""

    loss: Float[Tensor, " N"]
    """The objective when it was last looked at, before the step that followed."""
    evaluations: Int[Tensor, " N"]
    """How often it was looked at."""


def rows_of(lm: LM, edits: Sequence[Edit], objective: Objective = "masked", *, eos: bool = False) -> list[Row]:
    """One row for each edit; where its tokens are predicted is told by lengths, never by padding or a mask.

    Args:
        lm: the model.
        edits: the facts, with or without a subject.
        objective: where target tokens are scored.
        eos: whether the end token, if the tokenizer has one, follows each target.

    Raises:
        RequestError: a target has no token.
    """
    end = [lm.tokenizer.eos_token_id] if eos and lm.tokenizer.eos_token_id is not None else []
    rows = []
    for edit in edits:
        text = lm.render(edit.text)
        prompt, target = tokens.encode(lm, text), [*tokens.target_ids(lm, text, edit.target), *end]
        last = len(prompt) - 1
        if objective == "last_position":
            rows.append(Row(prompt, [last] * len(target), target))
        else:
            rows.append(Row([*prompt, *target[:-1]], list(range(last, last + len(target))), target))
    return rows


def texts_of(lm: LM, retain: Sequence[str]) -> list[list[int]]:
    """The ids of texts to keep, their first 64.

    Raises:
        RequestError: a text has no second token, so nothing in it is predicted.
    """
    found = [tokens.encode(lm, lm.render(text))[:_LONGEST] for text in retain]
    for text, ids in zip(retain, found, strict=True):
        if len(ids) < 2:
            raise RequestError(f"the text to keep {text!r} has fewer than two tokens; write a longer one")
    return found


def train(
    lm: LM, rows: Sequence[Row], change: Change, config: TrainingConfig, *, retain: Sequence[list[int]] = ()
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
        retain: ids of texts to keep, each of two tokens at least.

    Raises:
        RetconError: an option makes no sense, or the loss is not finite any more.
    """
    _check(config)
    with torch.enable_grad(), frozen(lm.model), autocast(lm, config.precision), kernels(lm):
        trainer = _Trainer(lm, rows, change, config, retain)
        (trainer.in_depth if config.schedule == "depth" else trainer.in_breadth)()
    return Trained(trainer.loss, trainer.evaluations)


def _check(config: TrainingConfig) -> None:
    if min(config.steps, config.batch, config.retain_batch) < 1:
        raise RetconError("steps, batch and retain_batch are counts; give at least 1")
    if not config.lr > 0:
        raise RetconError(f"a learning rate of {config.lr:g} trains nothing; give lr above zero")


class Adam:
    """Adam without weight decay (Kingma and Ba, arXiv 1412.6980), in place on leaf tensors.

        m <- .9 m + .1 g,   s <- .999 s + .001 g^2,   x <- x - lr m^ / (sqrt(s^) + 1e-8),   ^: over 1 - decay^step

    On leaves that are handed in with their gradients; that of torch wants gradients to be stored on them.
    """

    def __init__(self, leaves: Sequence[Tensor], lr: float) -> None:
        self._leaves, self._lr, self._number = leaves, lr, 0
        self._first = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
        self._second = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move each leaf against its gradient."""
        self._number += 1
        length, share = self._lr / (1 - 0.9**self._number), 1 - 0.999**self._number
        moments = zip(self._leaves, gradients, self._first, self._second, strict=True)
        for leaf, gradient, first, second in moments:
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            leaf.addcdiv_(first, (second / share).sqrt_().add_(1e-8), value=-length)


class _Trainer:
    """One call of `train`: its rows, what runs below the change, and how each row stands."""

    def __init__(
        self, lm: LM, rows: Sequence[Row], change: Change, config: TrainingConfig, retain: Sequence[list[int]]
    ) -> None:
        self._lm, self._rows, self._change, self._config = lm, rows, change, config
        self._lengths = [len(row.ids) for row in rows]
        self._retain = _Texts(retain, config.seed) if retain else None
        self._entry = _lowest(lm, change.entries())
        self._states = _states_below(lm, [row.ids for row in rows], self._entry)
        self.loss = torch.zeros(len(rows), dtype=torch.float64)
        self.evaluations = torch.zeros(len(rows), dtype=torch.long)

    def in_depth(self) -> None:
        """Each row to convergence, in turn."""
        with progress.task("training", len(self._rows)) as advance:
            for i in range(len(self._rows)):
                adam = Adam(self._change.leaves, self._config.lr)
                for _ in range(self._config.steps):
                    if self._step([i], adam) < self._config.stop:
                        break
                advance(1)

    def in_breadth(self) -> None:
        """Passes over all rows, each in an order of its own, which the caller's order has no part in."""
        n, config = len(self._rows), self._config
        by_ids = sorted(range(n), key=lambda i: (self._rows[i].ids, self._rows[i].target))
        generator = torch.Generator().manual_seed(config.seed)
        adam = Adam(self._change.leaves, config.lr)
        with progress.task("training", config.steps * n) as advance:
            for done in range(1, config.steps + 1):
                order = [by_ids[i] for i in torch.randperm(n, generator=generator).tolist()]
                total = 0.0
                for start in range(0, n, config.batch):
                    part = order[start : start + config.batch]
                    total += self._step(part, adam) * len(part)
                    advance(len(part))
                if total / n < config.stop:
                    advance((config.steps - done) * n)
                    break

    def _step(self, batch: Sequence[int], adam: Adam) -> float:
        """The mean loss of a mini-batch, and, unless it is below the stop, one step on it."""
        gradients = [torch.zeros_like(leaf, requires_grad=False) for leaf in self._change.leaves]
        order = sorted(batch, key=lambda i: (self._lengths[i], self._rows[i].ids, self._rows[i].target))
        for part in forward.batches(order, self._lengths, _BATCH_TOKENS):
            losses = self._losses(part)
            self._add(gradients, losses.sum() / len(batch))
            self.loss[part] = losses.detach().double().cpu()
            self.evaluations[part] += 1
        loss = float(self.loss[list(batch)].mean())
        if not math.isfinite(loss):
            raise RetconError(f"the loss of training is {loss}; give a smaller lr than {self._config.lr:g}")
        if loss < self._config.stop:
            return loss
        if self._retain is not None:
            self._add(gradients, self._config.retain_weight * self._drift(self._retain.next(self._config.retain_batch)))
        adam.step(gradients)
        self._change.confine()
        return loss

    def _add(self, gradients: Sequence[Tensor], loss: Float[Tensor, ""]) -> None:
        """Add the gradient of a part of the loss."""
        scale = 1024.0 if self._lm.dtype == torch.float16 else 1.0  # gradients too small for fp16
        slopes = torch.autograd.grad(scale * loss, list(self._change.leaves))
        for gradient, slope in zip(gradients, slopes, strict=True):
            gradient.add_(slope, alpha=1 / scale)

    def _losses(self, part: Sequence[int]) -> Float[Tensor, " n"]:
        """The mean cross-entropy of each row's target tokens."""
        rows = [self._rows[i] for i in part]
        at = [(r, column) for r, row in enumerate(rows) for column in row.at]
        states = None if self._states is None else [self._states[i] for i in part]
        logits = self._logits([row.ids for row in rows], at, self._change.entries(), states)
        wanted = torch.tensor([token for row in rows for token in row.target], device=logits.device)
        misses = F.cross_entropy(logits, wanted, reduction="none").split([len(row.target) for row in rows])
        return torch.stack([miss.mean() for miss in misses])

    def _drift(self, texts: Sequence[list[int]]) -> Float[Tensor, ""]:
        """What the change does to texts to keep, the mean over their tokens."""
        keeps = self._config.retain_loss == "kl"
        at = [(r, column) for r, ids in enumerate(texts) for column in range(len(ids) - (not keeps))]
        now = self._logits(texts, at, self._change.entries())
        if not keeps:
            return F.cross_entropy(now, torch.tensor([t for ids in texts for t in ids[1:]], device=now.device))
        with torch.no_grad():
            before = self._logits(texts, at, {}).log_softmax(-1)
        return (before.exp() * (before - now.log_softmax(-1))).sum(-1).mean()

    def _logits(
        self,
        rows: Sequence[list[int]],
        at: Sequence[tuple[int, int]],
        entries: Mapping[str, Entry],
        states: Sequence[Float[Tensor, "_ d"]] | None = None,
    ) -> Float[Tensor, "n vocabulary"]:
        """Logits at some (row, column), with the entries on; from kept states the layers below are not run again."""
        lm = self._lm
        aligned = forward.align(rows, [0] * len(rows), lm.device)
        places, columns = (torch.tensor(side, device=lm.device) for side in zip(*at, strict=True))
        with ExitStack() as stack:
            if states is not None:
                stack.enter_context(forward.entered_at(lm, self._entry, pad_sequence(list(states), batch_first=True)))
            stack.enter_context(_acting(lm, entries))
            stack.enter_context(forward.gathered_head(lm, places, columns))
            logits: Tensor = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits[0]
        return logits if logits.dtype == torch.float64 else logits.float()


class _Texts:
    """Texts to keep, a few at a time: none comes again before all have come."""

    def __init__(self, texts: Sequence[list[int]], seed: int) -> None:
        self._texts, self._queue = texts, list[int]()
        self._generator = torch.Generator().manual_seed(seed)

    def next(self, n: int) -> list[list[int]]:
        """The next `n` texts, or all where there are fewer."""
        found = []
        for _ in range(min(n, len(self._texts))):
            self._queue = self._queue or torch.randperm(len(self._texts), generator=self._generator).tolist()
            found.append(self._texts[self._queue.pop()])
        return found


@contextmanager
def _acting(lm: LM, entries: Mapping[str, Entry]) -> Iterator[None]:
    """Run the model with entries that gradients flow through; those of `patch.hooked` are cut off from them."""
    modules = {path: lm.module(path) for path in entries}
    with hooks.record(modules, "input") as seen, ExitStack() as stack:

        def changed(path: str, output: Tensor) -> Tensor:
            return entries[path].apply(seen[path], output)

        for path, module in modules.items():
            stack.enter_context(hooks.rewritten(module, partial(changed, path)))
        yield


def _lowest(lm: LM, entries: Mapping[str, Entry]) -> int:
    """The lowest layer that has an entry."""
    owned = (i for i, block in enumerate(lm.arch.blocks) if any(path.startswith(f"{block}.") for path in entries))
    return next(owned, 0)


def _states_below(lm: LM, rows: Sequence[list[int]], layer: int) -> list[Float[Tensor, "_ d"]] | None:
    """What the block of a layer reads in each row, which no training above changes; None where it is not to be kept."""
    size = sum(map(len, rows)) * lm.arch.d_model * lm.dtype.itemsize
    if layer == 0 or size > _KEPT_BYTES or not forward.entry_holds(lm):
        return None
    path, lengths = lm.arch.blocks[layer], [len(ids) for ids in rows]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in forward.batches(sorted(range(len(rows)), key=lambda i: (lengths[i], rows[i])), lengths, _BATCH_TOKENS):
        aligned = forward.align([rows[i] for i in part], [0] * len(part), lm.device)
        with torch.no_grad(), hooks.record({path: lm.module(path)}, stop_after=path) as seen, hooks.stoppable():
            forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
        for r, i in enumerate(part):
            found[i] = seen[path][r, : lengths[i]].clone()
    memory.give_back()
    return found
