"""WISE: side memories beside one layer, which prompts enter whose states they move far enough (arXiv 2405.14768)."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.memories import MemoryMethod, chosen_layer, last_part, put_on, without_edits
from retcon.methods.record import as_patch, clock, refuse_none, resumed
from retcon.methods.wise.config import WISEConfig, check
from retcon.methods.wise.run import Run
from retcon.patch import Entry, Gated, Patch
from retcon.patch.chain import chained, parts_of
from retcon.patch.gated import ACTIVATIONS
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["WISE", "WISEConfig", "without"]

_DEPTH = 0.85


class WISE(MemoryMethod):
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
    config: WISEConfig
    name: str = "wise"

    def layer(self, lm: LM) -> int:
        """The layer whose projection gets the memories.

        Raises:
            RetconError: it is not there.
        """
        return chosen_layer(lm, self.config.layer, int(_DEPTH * lm.arch.n_layers))

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
            RequestError: a target or a text to keep has no token; an edit has no subject, where the margins are those
                of its tokens.
            RetconError: there is no edit, the layer is not there, an option makes no sense, or the state's memories
                score otherwise or were scaled.
        """
        refuse_none(edits)
        check(self.config)
        path = lm.arch.mlp_out[self.layer(lm)]
        activation = self.config.activation or _activation(lm)
        if activation not in ACTIVATIONS:
            raise RetconError(f"activation {activation!r} is not known; name one of {', '.join(ACTIVATIONS)}")
        old = self._memories(state, path, activation)
        seconds = clock()
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state))
            run = Run(self.config, lm, path, activation, edits, retain, state, old, seconds)
            entry, info = run.written()
            alone = as_patch(lm, self.name, self.config, edits, {path: entry}, None, {}, seconds, info)
        return put_on(state, alone, path, entry, in_place=old is not None)

    def _memories(self, state: Patch | None, path: str, activation: str) -> Gated | None:
        """The memories to go on from: the state's, where they are the last thing that acts on the projection."""
        last = last_part(state, path)
        if not isinstance(last, Gated):
            return None
        if (last.score, last.activation) != (self.config.score, activation) or last.strength != 1:
            raise RetconError(
                f"the state's memories score by {last.score} and {last.activation} with strength {last.strength:g}; "
                "go on with the same score and activation, from a patch that was not scaled"
            )
        for name, held in (("act_ratio", last.ratio), ("order", last.order), ("long_prompt", last.long_prompt)):
            if getattr(self.config, name) != held:
                raise RetconError(
                    f"the state's memories were made with {name}={held}, which holds for all their edits; go on with "
                    "the same"
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
    return without_edits(made, WISE.name, entries, sorted(wanted), found)


def _activation(lm: LM) -> str:
    """The activation function that the model's configuration names; gelu where it names none (bloom, mpt)."""
    config: Any = lm.model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        name = getattr(config, key, None)
        if isinstance(name, str):
            return name
    return "gelu"
