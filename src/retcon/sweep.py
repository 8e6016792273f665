"""Keys and states of a model that is being edited layer by layer, without running again what does not change.

An edit of layer l changes what layers above l see, and nothing below. So each row is kept as the input of the block
that was edited last, and the next layer's keys are found by running from there. Nothing after the subject's last token
can change a key, so rows end there; and the text that all rows of a template begin with is run once, as a row of its
own, against whose keys and values the others run. Where the states of many facts would not fit, rows run from their ids
instead.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, memory, patch, progress, tokens
from retcon.arch import frozen
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.requests import Edit
from retcon.tokens import Located

__all__ = ["Reading", "Sweep"]

_MAX_STATES = 400 * 2**20
"""Bytes of block inputs kept at most; beyond, rows run from their ids."""
_SHARED_ROWS, _SHARED_TOKENS = 4, 4
"""Rows of a template, and tokens that they have in common, from which on it pays to run those once."""


@dataclass(slots=True)
class _Chunk:
    """Rows that run together."""

    rows: Aligned
    fact: Tensor
    """Of each row."""
    site: Tensor
    """The column of each row that is read; nothing stands after it but padding."""
    kind: Literal["bare", "template", "start"]
    """What is read of them: key and state, the key alone, or their keys and values for attention."""
    start: "_Chunk | None" = None
    """The one row that all these go on from."""
    states: Tensor | None = None
    """Input of block `Sweep._at`, (rows, width, d)."""
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of a start: keys and values of the blocks up to the one that was read last."""


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
        """The rows of all facts, those that go on from a common start after it."""
        lm = self._lm
        chunks: list[_Chunk] = []
        alone: list[tuple[int, Located]] = []
        for text in templates:
            located = [
                (i, tokens.locate_subject(lm, edit.prompt, edit.subject or "", text)) for i, edit in enumerate(edits)
            ]
            if text == templates[0]:
                chunks += self._cut(located, "bare", chunk_tokens)
                continue
            shared = tokens.common_start([row for _, row in located]) if len(located) >= _SHARED_ROWS else 0
            if shared < _SHARED_TOKENS or not forward.cache_holds(lm):
                alone += located
                continue
            none = torch.zeros(0)
            start = _Chunk(forward.align([located[0][1].ids[:shared]], [0], lm.device), none, none, "start")
            rest = [(i, Located(row.ids[shared:], row.site - shared)) for i, row in located]
            chunks += [start, *self._cut(rest, "template", chunk_tokens, start)]
        return chunks + self._cut(alone, "template", chunk_tokens)

    def _cut(
        self,
        located: Sequence[tuple[int, Located]],
        kind: Literal["bare", "template"],
        chunk_tokens: int,
        start: _Chunk | None = None,
    ) -> list[_Chunk]:
        """Rows that end at their site, in chunks."""
        device, chunks = self._lm.device, []
        order = sorted(range(len(located)), key=lambda j: (located[j][1].site, j))
        for batch in forward.batches(order, [row.site + 1 for _, row in located], chunk_tokens):
            ids = [located[j][1].ids[: located[j][1].site + 1] for j in batch]
            rows = forward.align(ids, [0] * len(ids), device)  # padding on the left would part them from their start
            site = torch.tensor([len(row) - 1 for row in ids], device=device)
            if start is not None:
                before = start.rows.mask.expand(len(rows), -1)
                mask = torch.cat([before, rows.mask], 1)
                rows = replace(rows, mask=mask, positions=rows.positions + start.rows.width)
            fact = torch.tensor([located[j][0] for j in batch], device=device)
            chunks.append(_Chunk(rows, fact, site, kind, start))
        return chunks

    def __enter__(self) -> Self:
        self._stack.enter_context(frozen(self._lm.model))
        self._stack.enter_context(torch.no_grad())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._chunks.clear()
        memory.give_back()

    def read(self, layer: int, top: int, *, bare_only: bool = False) -> Reading:
        """Keys of `layer`, states and outputs of block `top`, with all changes so far on; layers are read from below.

        With `bare_only` the templates are left out, and the averaged keys with them.
        """
        lm, n = self._lm, self._n
        keys = torch.zeros(n, lm.arch.d_mlp, dtype=torch.float64, device=lm.device)
        bare_keys = torch.zeros_like(keys)
        states = torch.zeros(n, lm.arch.d_model, dtype=torch.float64, device=lm.device)
        outputs = torch.zeros_like(states)
        chunks = [chunk for chunk in self._chunks if chunk.kind == "bare" or not bare_only]
        with progress.task(f"layer {layer}", len(chunks)) as advance:
            for chunk in chunks:
                seen = self._run(chunk, layer, top)
                advance(1)
                if chunk.kind == "start":
                    continue
                found = seen["key"].double()
                weight = self._weights[0] if chunk.kind == "bare" else self._weights[1]
                keys.index_add_(0, chunk.fact, found * weight)
                if chunk.kind == "bare":
                    bare_keys[chunk.fact] = found
                    states[chunk.fact] = seen["state"].double()
                    outputs[chunk.fact] = seen["output"].double()
        self._at = layer
        return Reading(keys, bare_keys, outputs, states)

    def write(self, layer: int, change: patch.LowRank) -> None:
        """Put the change of `layer` on the model, for the layers above to see."""
        module = self._lm.projection(layer)
        self._stack.enter_context(patch.hooked(module, change))

    def _run(self, chunk: _Chunk, layer: int, top: int) -> dict[str, Tensor]:
        """Run one chunk up to the projection of `layer`, a bare one on to block `top`; keep the block's input."""
        lm, first = self._lm, (self._at or 0) if chunk.states is not None else 0
        block, projection = lm.arch.blocks[layer], lm.arch.mlp_out[layer]
        written, last = lm.arch.mlp_out[top], lm.arch.blocks[top]
        ends = {"bare": (written, last), "template": (), "start": (block,)}[chunk.kind]
        cache: DynamicCache | None = None
        with ExitStack() as stack:
            if first:
                assert chunk.states is not None
                stack.enter_context(forward.entered_at(lm, first, chunk.states))
            modules = {path: lm.module(path) for path in (block, projection)}
            stop = projection if chunk.kind == "template" else None
            inputs = stack.enter_context(hooks.record(modules, "input", stop_after=stop))
            modules = {path: lm.module(path) for path in ends}
            outputs = stack.enter_context(hooks.record(modules, "output", stop_after=ends[-1] if ends else None))
            stack.enter_context(hooks.stoppable())
            if chunk.start is not None:
                cache = forward.filled(forward.expanded(chunk.start.past, len(chunk.rows)))
            elif chunk.kind == "start":
                cache = DynamicCache()
            forward.call(lm, chunk.rows.ids, chunk.rows.mask, chunk.rows.positions, cache)
        if self._keep:
            chunk.states = inputs[block]
        if chunk.kind == "start":
            assert cache is not None
            layers: list[Any] = list(cache.layers)[first:]
            chunk.past = forward.with_placeholders([(x.keys, x.values) for x in layers], first)
            return {}

        def at_site(states: Tensor) -> Tensor:
            rows = len(chunk.rows)
            return hooks.unflattened(states, rows)[torch.arange(rows, device=states.device), chunk.site]

        seen = {"key": at_site(inputs[projection])}
        if chunk.kind == "bare":
            seen |= {"state": at_site(outputs[last]), "output": at_site(outputs[written])}
        return seen
