"""What methods share that unlearn by an objective: rows, change, run, patch."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from retcon import patch
from retcon.errors import PatchError, RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods.family import edited_layers
from retcon.methods.fine_tuning import DenseChange
from retcon.methods.lora import Factors
from retcon.methods.record import as_patch, clock, refuse_none, resumed, timed
from retcon.methods.training import descending
from retcon.methods.training_rows import Change
from retcon.methods.unlearning.batches import Kept, Material, nlls
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.journal import Journal
from retcon.methods.unlearning.objectives import OBJECTIVES
from retcon.methods.unlearning.run import Run
from retcon.patch import Entry, Patch
from retcon.patch.base import projection
from retcon.requests import Edit
from retcon.storage import digest
from retcon.targets import Store

__all__ = ["Unlearning", "linear_paths"]


class Unlearning:
    """What the objectives share; a subclass says by its id which loss it descends on.

    An edit is read as a question: `prompt` asks it, `old` is the answer to be forgotten, `target` a refusal, which only
    those learn that say so.
    """

    Config: Any = UnlearningConfig
    name: str = ""
    order_matters: bool = False
    uses_retain: bool = True
    folds: bool = False
    unlearns: bool = True
    learns_refusal: bool = False
    """Whether edits' targets, the refusals, are learned too; else the old answers are only made less likely."""
    """It makes `old` less likely; whether `target` becomes likelier is the objective's business."""

    def __init__(self, config: Any = None, *, doing: str = "unlearning") -> None:
        """`doing` is what a terminal shows beside the steps: the trainer also serves who teaches."""
        self.config, self._doing = self.Config() if config is None else config, doing

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The layers that are trained."""
        chosen = range(lm.arch.n_layers) if self.config.layers is None else self.config.layers
        return edited_layers(lm, chosen)

    def layer(self, lm: LM) -> int | None:
        """The layer whose states are read; None where none are."""
        return None

    def change(self, lm: LM) -> Change:
        """The change to train, as yet without effect.

        Raises:
            RetconError: a layer is not there, or the factors' options make no sense.
        """
        paths, config = linear_paths(lm, self.layers(lm)), self.config
        if config.params == "full":
            return DenseChange.zero(lm, paths, None)
        return Factors.drawn(lm, paths, config.rank, config.alpha, config.seed)

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[Kept] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Train until the answers are forgotten; with `state`, on top of that patch, which the result then contains.

        Args:
            lm: the model; it is left as it was.
            edits: the questions, each with its answer as `old`.
            retain: what is to stay: texts, or pairs of a question and its answer.
            state: the patch to go on from; with it on, the model is the reference.
            stores: beside them the run keeps its journal until it is finished, and goes on from there.

        Returns:
            The patch of the look at which the answers were least likely, among those at which what is to stay was
            unharmed. `info["unlearning"]` tells of the run. Where there was no such look the patch changes nothing,
            and a warning says so.

        Raises:
            RequestError: an answer is missing, a text has no token, or a text to keep fewer than two.
            RetconError: there is no edit, nothing to keep where it has a weight, or an option makes no sense.
        """
        config = self.config
        _check(self.name, config, edits, retain)
        seconds = clock()
        with timed(seconds, "targets"):
            material = Material.of(lm, edits, retain, config, OBJECTIVES[self.name].sides)
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state))
            change, layer = self.change(lm), self.layer(lm)
            with timed(seconds, "solve"):
                journal = Journal(stores, self._key(lm, material) if stores else "")
                outcome = Run(lm, OBJECTIVES[self.name], config, change, material, journal, layer).run(self._doing)
            if not outcome.best:
                change = self.change(lm)
                _warn(self.name, outcome.stopped, config.lr)
            entries = {path: entry.to("cpu", torch.float32) for path, entry in change.entries().items()}
            with timed(seconds, "solve"):
                facts = self._facts(lm, edits, material, change.entries())
        info = {"targets_cached": 0, "facts": facts, "unlearning": outcome.told()}
        made = as_patch(lm, self.name, config, edits, entries, state, {}, seconds, info)
        journal.drop()
        return made

    def _key(self, lm: LM, material: Material) -> str:
        """Hash of all that decides the run."""
        rows = [[[row.ids, row.at, row.target] for row in material.side(name)] for name in _SIDES]
        on = [item.id for item in patch.active(lm.model)]
        return digest("unlearning", 1, lm.fingerprint(), on, self.name, asdict(self.config), rows)

    def _facts(
        self, lm: LM, edits: Sequence[Edit], material: Material, entries: Mapping[str, Entry]
    ) -> list[dict[str, Any]]:
        """One record a question, in the caller's order: the probability of a token of its answer, before and after.

        The probability is the geometric mean over the answer's tokens; of the refusal it is told too, where it is
        learned. Of an answer that no record tells it is told in tenths, for whoever has the model could try answers on
        the exact one.
        """
        facts: list[dict[str, Any]] = [{} for _ in material.order]
        for side, name in (("forget", ""), ("refusal", "refusal_")):
            rows = material.side(side)
            if not rows:
                continue
            lengths = torch.tensor([len(row.target) for row in rows])
            with descending(lm, self.config.precision):
                before, after = ((-nlls(lm, rows, on) / lengths).exp().tolist() for on in ({}, entries))
            for place, i in enumerate(material.order):
                digits = 1 if side == "forget" and "old" in edits[i].hidden else 5
                facts[i][f"{name}before"] = round(before[place], digits)
                facts[i][f"{name}probability"] = round(after[place], digits)
        return facts


_SIDES = ("forget", "refusal", "retain")


def linear_paths(lm: LM, layers: Sequence[int]) -> list[str]:
    """Module paths of all projections of some layers, attention's and the MLP's, from below."""
    found = []
    for layer in layers:
        block = lm.arch.blocks[layer]
        for path, _ in lm.module(block).named_modules(prefix=block):
            try:
                projection(lm.model, path)
            except PatchError:
                continue
            found.append(path)
    return found


def _check(name: str, config: Any, edits: Sequence[Edit], retain: Sequence[Kept]) -> None:
    """Refuse what makes no sense, with the cure."""
    refuse_none(edits)
    if isinstance(retain, str):
        raise RetconError("retain is a single text; give a list of one")
    if min(config.epochs, config.batch, config.retain_batch, config.eval_every, config.watched) < 1:
        raise RetconError("epochs, batch, retain_batch, eval_every and watched are counts; give at least 1")
    for option in ("lr", "clip", "beta"):
        if not getattr(config, option, 1.0) > 0:
            raise RetconError(f"{name} has a {option} of {getattr(config, option):g}; give one above zero")
    if min(config.forget_weight, config.retain_weight) < 0 or not config.forget_weight + config.retain_weight > 0:
        raise RetconError("the weights are not below zero, and not both zero; mend forget_weight or retain_weight")
    if config.retain_loss == "embed" and name != "rmu":
        raise RetconError(f"{name} reads no states, so retain_loss is nll or kl; choose one of them")
    if config.retain_weight and not retain:
        raise RetconError(f"{name} weighs forgetting against texts to keep; give some as retain, or retain_weight=0")


def _warn(name: str, why: str, lr: float) -> None:
    warnings.warn(
        f"{name} never forgot without harm ({why}), so the patch changes nothing; give a smaller lr than {lr:g}, or "
        "eval_every=1",
        RetconWarning,
        stacklevel=3,
    )
