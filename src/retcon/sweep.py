"""Keys and states of a model that is being edited layer by layer, without running again what does not change.

An edit of layer l changes what layers above l see, and nothing below. So each row is kept as the input of the block
that was edited last, and the next layer's keys are found by running from there. Nothing after the subject's last token
can change a key, so rows end there. Where the states of many facts would not fit, rows run from their ids instead.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, hooks, patch, progress, tokens
from retcon.arch import frozen
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.requests import Edit

__all__ = ["Reading", "Sweep"]

_MAX_STATES = 400 * 2**20
"""Bytes of block inputs kept at most; beyond, rows run from their ids."""


@dataclass(slots=True)
class _Chunk:
    rows: Aligned
    fact: Tensor
    bare: bool
    states: Tensor | None = None
    """Input of block `Sweep._at`, (rows, width, d)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one layer says before it is edited."""

    keys: Float[Tensor, "N d_k"]
    """Input of the projection at the subject's last token, averaged over the templates; fp64."""
    bare_keys: Float[Tensor, "N d_k"]
    """The same under the bare prompt alone."""
    outputs: Float[Tensor, "N d"]
    """Present output of block `top`'s projection under the bare prompt (bias and patches included)."""
    states: Float[Tensor, "N d"]
    """Present output of block `top` at the subject's last token under the bare prompt."""

    def only(self, facts: Sequence[int]) -> "Reading":
        """The reading of some of the facts."""
        index = list(facts)
        return Reading(self.keys[index], self.bare_keys[index], self.outputs[index], self.states[index])


class Sweep:
    """A pass over the edited layers, from below, that reads a layer, is told its change, and goes on.

    Used as a context manager: the changes are on the model until it is left.
    """

    def __init__(
        self,
        lm: LM,
        edits: Sequence[Edit],
        templates: Sequence[str],
        layers: Sequence[int],
        *,
        bare_weight: float = 0.5,
        chunk_tokens: int = 1024,
    ) -> None:
        """Lay out the rows.

        Args:
            lm: the model, with earlier patches already on.
            edits: the facts.
            templates: texts before the prompt, the first of them "".
            layers: the layers to edit, in order.
            bare_weight: share of the bare prompt in a key; the other templates share the rest evenly (MEMIT takes 1/2).
            chunk_tokens: tokens of one forward.
        """
        self._lm, self._layers, self._n = lm, list(layers), len(edits)
        alone = len(templates) == 1
        self._weights = (1.0 if alone else bare_weight, 0.0 if alone else (1 - bare_weight) / (len(templates) - 1))
        self._chunks = self._laid_out(edits, templates, chunk_tokens)
        size = sum(chunk.rows.ids.numel() for chunk in self._chunks) * lm.arch.d_model * 4
        self._keep = size <= _MAX_STATES and forward.entry_holds(lm)
        self._at: int | None = None
        self._stack = ExitStack()

    def _laid_out(self, edits: Sequence[Edit], templates: Sequence[str], chunk_tokens: int) -> list[_Chunk]:
        chunks = []
        for bare, texts in ((True, templates[:1]), (False, templates[1:])):
            located = [
                (i, tokens.locate_subject(self._lm, edit.prompt, edit.subject or "", text))
                for text in texts
                for i, edit in enumerate(edits)
            ]
            order = sorted(range(len(located)), key=lambda j: (located[j][1].site, j))
            for batch in forward.batches(order, [found.site + 1 for _, found in located], chunk_tokens):
                ids = [located[j][1].ids[: located[j][1].site + 1] for j in batch]
                rows = forward.align(ids, [len(row) - 1 for row in ids], self._lm.device)
                chunks.append(_Chunk(rows, torch.tensor([located[j][0] for j in batch], device=self._lm.device), bare))
        return chunks

    def __enter__(self) -> Self:
        self._stack.enter_context(frozen(self._lm.model))
        self._stack.enter_context(torch.no_grad())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for chunk in self._chunks:
            chunk.states = None

    def read(self, layer: int, top: int, *, bare_only: bool = False) -> Reading:
        """Keys of `layer`, states and outputs of block `top`, with all changes so far on; layers are read from below.

        With `bare_only` the templates are left out, and the averaged keys with them.
        """
        lm, n = self._lm, self._n
        keys = torch.zeros(n, lm.arch.d_mlp, dtype=torch.float64, device=lm.device)
        bare_keys = torch.zeros_like(keys)
        states = torch.zeros(n, lm.arch.d_model, dtype=torch.float64, device=lm.device)
        outputs = torch.zeros_like(states)
        chunks = [chunk for chunk in self._chunks if chunk.bare or not bare_only]
        with progress.task(f"layer {layer}", len(chunks)) as advance:
            for chunk in chunks:
                seen = self._run(chunk, layer, top)
                found = seen["key"].double()
                weight = self._weights[0] if chunk.bare else self._weights[1]
                keys.index_add_(0, chunk.fact, found * weight)
                if chunk.bare:
                    bare_keys[chunk.fact] = found
                    states[chunk.fact] = seen["state"].double()
                    outputs[chunk.fact] = seen["output"].double()
                advance(1)
        self._at = layer
        return Reading(keys, bare_keys, outputs, states)

    def write(self, layer: int, change: patch.LowRank) -> None:
        """Put the change of `layer` on the model, for the layers above to see."""
        module = self._lm.projection(layer)
        self._stack.enter_context(patch.hooked(module, change))

    def _run(self, chunk: _Chunk, layer: int, top: int) -> dict[str, Tensor]:
        """Run one chunk up to the projection of `layer`, a bare one on to block `top`; keep the block's input."""
        lm = self._lm
        block, projection = lm.arch.blocks[layer], lm.arch.mlp_out[layer]
        written, last = lm.arch.mlp_out[top], lm.arch.blocks[top]
        with ExitStack() as stack:
            if chunk.states is not None and self._at:
                stack.enter_context(forward.entered_at(lm, self._at, chunk.states))
            inputs = stack.enter_context(
                hooks.record(
                    {block: lm.module(block), projection: lm.module(projection)},
                    "input",
                    stop_after=None if chunk.bare else projection,
                )
            )
            ends = {written: lm.module(written), last: lm.module(last)} if chunk.bare else {}
            outputs = stack.enter_context(hooks.record(ends, "output", stop_after=last))
            stack.enter_context(hooks.stoppable())
            forward.call(lm, chunk.rows.ids, chunk.rows.mask, chunk.rows.positions)
        if self._keep:
            chunk.states = inputs[block]
        rows = len(chunk.rows)
        seen = {"key": hooks.unflattened(inputs[projection], rows)[:, -1]}
        if chunk.bare:
            output = hooks.unflattened(outputs[written], rows)
            seen |= {"state": outputs[last][:, -1], "output": output[:, -1]}
        return seen
