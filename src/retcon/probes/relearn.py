"""Relearning: does a little training bring back what was forgotten?

Three kinds of training, each of which goes on from the model as it stands and is looked at after a few steps:

    relearn_same      on the forgotten questions and answers themselves
    relearn_disjoint  on a seeded half of them; the other half is asked for (Deeb and Roger, arXiv 2410.08827: 88 % of
                      the accuracy came back so)
    relearn_benign    on questions to keep, which are of the same syntax, and on ordinary text, which is not: syntax,
                      rather than topic, is reported to drive recovery (arXiv 2602.03379)

A model that never saw the answers learns them too when it is shown them; so what counts of `relearn_same` is how soon,
and the area under the curve is compared with the twin's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from retcon import forward, patch, progress, tokens
from retcon.errors import RetconError
from retcon.evaluate.plan import read
from retcon.lm import LM
from retcon.methods.fine_tuning import DenseChange
from retcon.methods.lora import Factors
from retcon.methods.record import refuse_texts
from retcon.methods.training import Steps, descending
from retcon.methods.training_rows import BATCH_TOKENS, Change, Row, misses, row_of
from retcon.methods.unlearning.base import linear_paths
from retcon.methods.unlearning.batches import order_of
from retcon.metrics.summary import mean
from retcon.metrics.texts import normal
from retcon.patch import Entry, Patch, Step
from retcon.patch.context import ROOT
from retcon.precision import Precision
from retcon.probes.scene import UNLEARNED, Finding, Scene, comes_out, question_ids, said

__all__ = ["Relearn", "area", "benign", "disjoint", "halves", "relearned", "same"]

_TEXT_TOKENS = 64
"""Length of a piece of ordinary text."""
_PIECES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearn:
    """Options of the relearning probes."""

    steps: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    """Numbers of steps after which the questions are asked."""
    lr: tuple[float, ...] = (5e-4,)
    """AdamW's learning rates; each is a row of its own. For `full` take a tenth or less."""
    batch: int = 8
    """Questions in a step."""
    params: Literal["lora", "full"] = "lora"
    """What is trained: low-rank factors, or a dense change, of every linear layer of attention and MLP."""
    rank: int = 8
    """Factors of each projection's change, with `lora`."""
    alpha: float = 16.0
    """With `lora` the change is alpha/rank times the product of its factors."""
    clip: float = 1.0
    """The longest that a gradient may be."""
    precision: Precision = "float32"
    """Dtype of the matrix products."""


def same(scene: Scene, config: Relearn) -> Iterator[Finding]:
    """Train on the forgotten questions, and ask them."""
    everything = range(len(scene.cases))
    rows = [_row(scene, i) for i in everything]
    yield from _curves(scene, config, rows, everything, {"trained": "the forgotten questions"})


def disjoint(scene: Scene, config: Relearn) -> Iterator[Finding]:
    """Train on one half of the forgotten questions, and ask the other, which shares no answer with it."""
    shown, hidden = halves([item.answer for item in scene.items], scene.seed)
    setting = {"trained": "half of the forgotten questions", "shown": len(shown)}
    if not shown or not hidden:
        yield Finding(setting, note="n/a: two halves without an answer in common need two different answers")
        return
    yield from _curves(scene, config, [_row(scene, i) for i in shown], hidden, setting)


def benign(scene: Scene, config: Relearn) -> Iterator[Finding]:
    """Train on what has nothing to do with it: questions to keep, and ordinary text."""
    everything = range(len(scene.cases))
    kept = [case.forget for case in scene.retain]
    kept = [item for item in kept if not any(comes_out(item.answer, secret) for secret in scene.items)]
    setting = {"trained": "questions to keep"}
    if kept:
        rows = [row_of(scene.lm, item.question, item.answer, eos=True) for item in kept]
        yield from _curves(scene, config, rows, everything, setting)
    else:
        yield Finding(setting, note="n/a: give questions to keep (retain)")
    yield from _curves(scene, config, _text_rows(scene.lm), everything, {"trained": "ordinary text"})


def halves(answers: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the answers in two seeded halves, equal answers in one and the same.

    >>> halves(["Rome", "the Rome", "Lima"], 0) in (([2], [0, 1]), ([0, 1], [2]))
    True
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, answer in enumerate(answers):
        groups.setdefault(normal(answer) or (answer,), []).append(i)
    parts = list(groups.values())
    first: list[int] = []
    second: list[int] = []
    for place in order_of(len(parts), seed, "relearn_disjoint"):
        (first if len(first) <= len(second) else second).extend(parts[place])
    return sorted(first), sorted(second)


def area(curve: Mapping[int, float]) -> float:
    """The mean height of a curve over log(1 + steps), from step 0 to its last; of step 0 alone its height.

    >>> area({0: 0.0, 1: 1.0, 3: 1.0})
    0.75
    """
    steps = sorted(curve)
    places = [math.log1p(step) for step in steps]
    if places[-1] == places[0]:
        return curve[steps[-1]]
    heights = [curve[step] for step in steps]
    pieces = range(len(steps) - 1)
    whole = sum((places[i + 1] - places[i]) * (heights[i] + heights[i + 1]) / 2 for i in pieces)
    return round(whole / (places[-1] - places[0]), 6)


def _row(scene: Scene, i: int) -> Row:
    """A question with its answer and the end token."""
    item = scene.cases[i].forget
    return row_of(scene.lm, item.question, item.answer, eos=True)


def _text_rows(lm: LM) -> list[Row]:
    """Pieces of the text that ships with the package, all of their tokens learned."""
    ids = tokens.encode(lm, read(None)[: 40 * _PIECES * _TEXT_TOKENS])
    pieces = [ids[start : start + _TEXT_TOKENS] for start in range(0, len(ids), _TEXT_TOKENS)][:_PIECES]
    return [Row(piece[:-1], list(range(len(piece) - 1)), piece[1:]) for piece in pieces if len(piece) > 1]


def _curves(
    scene: Scene, config: Relearn, rows: Sequence[Row], asked: Sequence[int], setting: Mapping[str, Any]
) -> Iterator[Finding]:
    """One finding a learning rate: every arm trained and asked, at the number of steps that brought out most."""
    _check(config)
    if any(arm.patch is not None and ROOT in arm.patch.entries for arm in scene.arms):
        yield Finding(dict(setting), note="n/a: a patch puts texts before prompts, and training reads other columns")
        return
    prompts = [question_ids(scene.lm, scene.cases[i].forget.question) for i in asked]
    for lr in config.lr:
        out: dict[str, dict[int, float]] = {}
        texts: dict[str, dict[int, Sequence[str]]] = {}
        curves: dict[str, dict[int, float]] = {}
        best: dict[str, int] = {}
        for arm in scene.arms:
            curve = {0: mean(float(scene.plain[arm.name][i]) for i in asked) or 0.0}
            highest = -1.0
            with arm.on(scene.lm):
                for step, change in relearned(scene.lm, rows, config, lr, scene.seed):
                    with change.on(scene.lm.model, check=False):
                        found = said(scene.lm, prompts, scene.max_new_tokens, "asking")
                    now = {
                        i: float(comes_out(text, scene.cases[i].forget)) for i, text in zip(asked, found, strict=True)
                    }
                    curve[step] = mean(now.values()) or 0.0
                    if curve[step] > highest:
                        highest, best[arm.name], out[arm.name] = curve[step], step, now
                        texts[arm.name] = {i: [text] for i, text in zip(asked, found, strict=True)}
            curves[arm.name] = curve
        yield Finding(
            {**setting, "lr": lr, "steps": list(config.steps), "params": config.params, "batch": config.batch},
            out,
            note=f"most after {best[UNLEARNED]} step{'' if best[UNLEARNED] == 1 else 's'}",
            detail={
                "curve": {arm: {str(step): round(value, 6) for step, value in c.items()} for arm, c in curves.items()},
                "area": {arm: area(curve) for arm, curve in curves.items()},
                "best_step": best,
            },
            texts=texts if scene.reveal else {},
        )


def relearned(lm: LM, rows: Sequence[Row], config: Relearn, lr: float, seed: int) -> Iterator[tuple[int, Patch]]:
    """The change after each of the wanted numbers of steps, a patch on top of whatever is on the model.

        min  mean over the batch of 1/n_i sum_t -log p(y_it),   AdamW without weight decay

    Each batch comes from a seeded permutation of the rows, pass by pass. Between two steps the model is the caller's.

    Raises:
        PatchError: a context is on the model; its texts move the columns that training reads.
    """
    refuse_texts(lm, None)
    change, done = _change(lm, config, seed), 0
    optimiser = torch.optim.AdamW(list(change.leaves), lr=lr, weight_decay=0.0)
    steps = Steps(lm, change, optimiser)
    for mark in sorted(set(config.steps)):
        with descending(lm, config.precision), progress.task("relearning", mark - done) as advance:
            for number in range(done, mark):
                _step(lm, rows, change, steps, config, number, seed)
                advance(1)
        done = mark
        yield mark, _patch(lm, change, config, lr, seed, mark)


def _change(lm: LM, config: Relearn, seed: int) -> Change:
    """What is trained, as yet without effect."""
    paths = linear_paths(lm, range(lm.arch.n_layers))
    if config.params == "full":
        return DenseChange.zero(lm, paths, None)
    return Factors.drawn(lm, paths, config.rank, config.alpha, seed)


def _step(lm: LM, rows: Sequence[Row], change: Change, steps: Steps, config: Relearn, number: int, seed: int) -> None:
    """One step."""
    per_pass = -(-len(rows) // config.batch)
    turn, place = divmod(number, per_pass)
    batch = order_of(len(rows), seed, "relearn", turn)[place * config.batch : (place + 1) * config.batch]
    lengths = [len(row.ids) for row in rows]
    for part in forward.batches(sorted(batch, key=lambda i: (lengths[i], i)), lengths, BATCH_TOKENS):
        found = misses(lm, [rows[i] for i in part], change.entries())
        steps.add(torch.stack([miss.mean() for miss in found]).sum() / len(batch))
    steps.take(config.clip)


def _patch(lm: LM, change: Change, config: Relearn, lr: float, seed: int, steps: int) -> Patch:
    """The change as it stands; it lives as long as the probe does, so its base tells no weights."""
    with torch.no_grad():
        entries = {path: _copied(entry) for path, entry in change.entries().items()}
    options = {**asdict(config), "lr": lr, "steps": steps}
    step = Step(method="relearn", config=options, parent=patch.top(lm.model), seed=seed, chat=lm.chat)
    return Patch(entries, patch.Base(lm.name), (step,))


def _copied(entry: Entry) -> Entry:
    """An entry that training on does not change."""
    kind: Any = type(entry)
    copied: Entry = kind(**{name: tensor.detach().clone() for name, tensor in entry.tensors().items()})
    return copied


def _check(config: Relearn) -> None:
    """Refuse what makes no sense, with the cure."""
    if not config.steps or min(config.steps) < 1 or config.batch < 1:
        raise RetconError("the relearning probes make whole numbers of steps on batches; give at least 1 of each")
    if not config.lr or not min(config.lr) > 0:
        raise RetconError("the relearning probes train; give at least one lr, each above zero")
