"""WISE: side memories beside one layer, which prompts enter whose states they move far enough (arXiv 2405.14768)."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from retcon import patch
from retcon.errors import PatchError, RetconError
from retcon.lm import LM
from retcon.methods.record import as_patch
from retcon.methods.wise_config import WISEConfig, check
from retcon.methods.wise_run import Run, name_of
from retcon.patch import Entry, Gated, Patch
from retcon.patch.chain import chained, parts_of
from retcon.patch.gated import ACTIVATIONS
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["WISE", "WISEConfig", "without"]

_DEPTH = 0.85


class WISE:
    """WISE: a side memory that takes the place of a weight for the prompts that it was trained on, and near ones.

        y' = (W + D_j) h + b   where j = argmax_i d_i over those with d_i > ratio * a_i,   else   y = W h + b
        d_i = mean over prompt tokens of | s(y + D_i h) - s(y) |,   a_i = min over the edits in i of their own score

    Edits are written into D one after the other by gradient descent on a random share of its entries: the answer's
    cross-entropy, and margins that hold the scores of edits and of ordinary prompts apart. Full memories are closed,
    and after some of them they are merged by TIES.

    Paper: Wang, Li, Zhang et al., WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of Large Language
    Models, NeurIPS 2024, arXiv 2405.14768.
    """

    Config: Any = WISEConfig
    name: str = "wise"
    order_matters: bool = True
    folds: bool = False
    """A batch gives the memories of its fold, but it is one step."""
    routes: bool = True
    """Its patches look at the prompt and are no change of a weight."""

    def __init__(self, config: WISEConfig | None = None) -> None:
        self.config = config or WISEConfig()

    def layer(self, lm: LM) -> int:
        """The layer whose projection gets the memories.

        Raises:
            RetconError: it is not there.
        """
        n, layer = lm.arch.n_layers, self.config.layer
        if layer is None:
            return int(_DEPTH * n)
        if not 0 <= layer < n:
            raise RetconError(f"layer {layer} does not fit; name one of 0 to {n - 1}")
        return layer

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Write the facts one after the other; with `state`, into its open memory, in a patch that contains it.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: prompts to keep: the ordinary ones that edits are held against; else the model writes some.
            state: the patch to go on from.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a target has no token.
            RetconError: there is no edit, the layer is not there, an option makes no sense, or the state's memories
                score otherwise or were scaled.
        """
        if not edits:
            raise RetconError("there is no edit; give at least one")
        check(self.config)
        path = lm.arch.mlp_out[self.layer(lm)]
        activation = self.config.activation or _activation(lm)
        if activation not in ACTIVATIONS:
            raise RetconError(f"activation {activation!r} is not known; name one of {', '.join(ACTIVATIONS)}")
        old = self._memories(state, path, activation)
        seconds = {"statistics": 0.0, "targets": 0.0, "solve": 0.0}
        with ExitStack() as stack:
            if state is not None and state.id not in {item.id for item in patch.active(lm.model)}:
                stack.enter_context(state.on(lm.model))
            run = Run(self.config, lm, path, activation, edits, retain, state, old, seconds)
            entry, info = run.written()
            alone = as_patch(lm, self.name, self.config, edits, {path: entry}, None, {}, seconds, info)
        if state is None:
            return alone
        whole = state.then({}, alone.history[0], base=alone.base, info=alone.info)
        below = state.entries.get(path)
        parts = [] if below is None else list(parts_of(below))
        joined = chained([*(parts[:-1] if old is not None else parts), entry])
        return replace(whole, entries={**whole.entries, path: joined})

    def _memories(self, state: Patch | None, path: str, activation: str) -> Gated | None:
        """The memories to go on from: the state's, where they are the last thing that acts on the projection."""
        entry = None if state is None else state.entries.get(path)
        last = None if entry is None else parts_of(entry)[-1]
        if not isinstance(last, Gated):
            return None
        if (last.score, last.activation) != (self.config.score, activation) or last.strength != 1:
            raise RetconError(
                f"the state's memories score by {last.score} and {last.activation} with strength {last.strength:g}; "
                "go on with the same score and activation, from a patch that was not scaled"
            )
        return last


def without(made: Patch, ids: Iterable[str]) -> Patch:
    """A patch of WISE without some edits, which must be all those of one memory or of several.

    Args:
        made: the patch.
        ids: of the edits; the `id` in their record, or, where they have none, the one in `info["facts"]`.

    Raises:
        PatchError: there is no such edit, or one of them shares its memory with edits that are to stay: what each wrote
            cannot be told apart.
    """
    wanted = set(ids)
    entries: dict[str, Entry] = {}
    found: set[str] = set()
    for path, entry in made.entries.items():
        parts: list[Entry] = []
        for part in parts_of(entry):
            mine = wanted & {name for names in part.names for name in names} if isinstance(part, Gated) else set()
            parts.append(part.without(sorted(mine)) if isinstance(part, Gated) and mine else part)
            found |= mine
        entries[path] = chained(parts)
    if missing := sorted(wanted - found):
        raise PatchError(f"there is no edit {missing[0]!r} in patch {made.id}; `patch.edits` lists them")
    steps = []
    for step in made.history:
        gone = [step.method == WISE.name and name_of(record) in found for record in step.edits]
        left = tuple(record for record, out in zip(step.edits, gone, strict=True) if not out)
        if left or not any(gone):
            steps.append(replace(step, edits=left))
    if steps:
        steps[0] = replace(steps[0], parent=made.parent)
    return Patch(entries, made.base, tuple(steps), made.state, made.info)


def _activation(lm: LM) -> str:
    """The activation function that the model's configuration names; gelu where it names none (bloom, mpt)."""
    config: Any = lm.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        name = getattr(config, key, None)
        if isinstance(name, str):
            return name
    return "gelu"
