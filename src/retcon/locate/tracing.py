"""Causal tracing: which states carry a fact through the model.

The subject's embeddings are corrupted by Gaussian noise, so that the model loses the answer; then one clean state is
put back at (layer, token), and the probability of the answer says how much of the fact that state carries (ROME,
arXiv 2202.05262). With p the probability of the answer's first token,

    indirect effect(layer, token) = p(corrupted, state restored) - p(corrupted)      mean over draws of the noise

A restored state is a block's output, or the outputs of the MLPs, or of the attentions, of a window of layers.

A restore changes nothing below its layer and nothing before its token. So the corrupted run is kept, as the input of
each block and as keys and values, and each restore runs only the tokens from its own on, in the blocks above, many of
them together. Where a model cannot be entered half-way, or its cache is of its own kind, rows run whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, progress, storage, tokens
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.locate.facts import Fact, facts_of, subject_start
from retcon.requests import Edit

__all__ = ["Kind", "Trace", "Tracing", "trace"]

Kind = Literal["hidden", "mlp", "attn"]
"""What is restored: a block's output, or the MLP's or attention's output of a window of layers."""

_FORWARD_COST = 40
"""What one more forward costs beside its tokens, in tokens: its weights are read again."""
_HEAD_ROWS = 256
"""Rows of logits made at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Options of causal tracing, with the paper's defaults; it draws 10 noises, and three serve nearly as well."""

    kind: Kind = "hidden"
    """What is restored."""
    answer: Literal["old", "new", "greedy"] = "old"
    """Whose probability: the old answer's (the model's own where none is given), the new one's, or the model's own."""
    noise: float = 3.0
    """Standard deviation of the noise, in units of that of the subject tokens' embeddings over all facts given."""
    noises: int = 3
    """Draws of the noise to average over."""
    window: int = 10
    """Layers restored together, centred, for `mlp` and `attn`; a block's output is always restored alone."""
    seed: int = 0
    """Of the noise; each fact draws its own from it, so a fact's noise does not depend on its company."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The causal trace of one fact."""

    config: Tracing
    """How it was traced."""
    prompt: str
    """The fact's prompt, subject filled in."""
    tokens: tuple[str, ...]
    """The prompt as the model sees it, token by token."""
    subject: tuple[int, int]
    """Index of the subject's first and last token."""
    answer: str
    """The answer whose first token is looked at."""
    token: str
    """That token."""
    known: bool
    """Whether it is what the model says."""
    high: float
    """Its probability in the clean run."""
    low: float
    """Its probability in the corrupted run, mean over draws."""
    columns: tuple[int, ...]
    """Indices of the tokens whose states were restored."""
    restored: Float[Tensor, "layers columns"]
    """Its probability with the state at (layer, column) restored, mean over draws."""

    @property
    def effects(self) -> Float[Tensor, "layers columns"]:
        """Indirect effects: what a restore adds to the probability."""
        return self.restored - self.low


def trace(
    lm: LM,
    edits: Sequence[Edit],
    config: Tracing = Tracing(),
    *,
    where: Literal["all", "subject"] = "all",
    batch_tokens: int = 1024,
) -> list[Trace]:
    """Trace each fact.

    Args:
        lm: the model, with any patch already on.
        edits: the facts; each needs a subject.
        config: options.
        where: restore at every token of the prompt, or at the subject's last one only.
        batch_tokens: tokens of one forward; it bounds memory.

    Raises:
        RequestError: an edit has no subject, or it is not found in its prompt; an answer has no token.
        RetconError: an option is out of range.
    """
    _check(config)
    if not edits:
        raise RequestError("there is no fact to trace; give at least one")
    starts = [subject_start(lm, edit) for edit in edits]
    facts = facts_of(lm, edits, config.answer)
    level = config.noise * _spread(lm, facts, starts)
    found = []
    with lm.inference(), progress.task("facts traced", len(facts)) as advance:
        for edit, fact, start in zip(edits, facts, starts, strict=True):
            run = _Run(lm, fact, start, level, config)
            columns = range(len(fact.ids)) if where == "all" else [fact.site]
            found.append(_traced(run, edit, fact, columns, batch_tokens))
            advance(1)
    return found


def _check(config: Tracing) -> None:
    if config.noise <= 0:
        raise RetconError(
            f"a noise of {config.noise:g} corrupts nothing; take 3, as published, or another number above 0"
        )
    if config.noises < 1:
        raise RetconError(f"{config.noises} noises are no sample; take at least 1")
    if config.window < 1:
        raise RetconError(f"a window of {config.window} layers is empty; take at least 1")


def _spread(lm: LM, facts: Sequence[Fact], starts: Sequence[int]) -> float:
    """Standard deviation of the embeddings of all subject tokens, over all their coordinates."""
    ids = [token for fact, start in zip(facts, starts, strict=True) for token in fact.ids[start : fact.site + 1]]
    embedding: Any = lm.model.get_input_embeddings()
    with torch.no_grad():
        return float(embedding(torch.tensor(ids, device=lm.device)).double().std())


class _Run:
    """The clean and the corrupted runs of one fact, and what restores in the latter give."""

    def __init__(self, lm: LM, fact: Fact, start: int, level: float, config: Tracing) -> None:
        self.lm, self.config = lm, config
        self.start, self.site, self.width = start, fact.site, len(fact.ids)
        self.token = fact.answer[0]
        self._ids = torch.tensor([fact.ids], device=lm.device)
        self._noise = self._drawn(level)
        self._enters, self._caches = forward.entry_holds(lm), forward.cache_holds(lm)
        arch = lm.arch
        self._paths = {"hidden": arch.blocks, "mlp": arch.mlp_out, "attn": arch.attn_out}[config.kind]
        cache = DynamicCache() if self._caches else None
        rows = 1 + config.noises  # the clean row, then a corrupted one for each draw
        with ExitStack() as stack:
            stack.enter_context(self._corrupted(torch.cat([torch.zeros_like(self._noise[:1]), self._noise])))
            inputs = stack.enter_context(hooks.record({path: lm.module(path) for path in arch.blocks}, "input"))
            outputs = stack.enter_context(hooks.record({path: lm.module(path) for path in self._paths}, "output"))
            ends = self._ends(self._ids.expand(rows, -1), 0, cache)
        probability, best = self._read(ends)
        self.known = int(best[0]) == self.token
        self._low = probability[1:]
        self.high, self.low = float(probability[0]), float(self._low.mean())
        self._inputs = [inputs[path][1:] for path in arch.blocks]  # of the corrupted rows, (noises, width, d)
        self._clean = [hooks.unflattened(outputs[path], rows)[0] for path in self._paths]  # (width, d)
        layers: list[Any] = [] if cache is None else list(cache.layers)
        self._past = [(layer.keys[1:], layer.values[1:]) for layer in layers]

    def _drawn(self, level: float) -> Float[Tensor, "noises width d"]:
        embedding: Any = self.lm.model.get_input_embeddings()
        own = storage.digest(self.config.seed, self._ids.tolist())
        generator = torch.Generator().manual_seed(int(own[:12], 16))
        shape = self.config.noises, self.site + 1 - self.start, int(embedding.weight.shape[1])
        noise = torch.zeros(shape[0], self.width, shape[2])
        noise[:, self.start : self.site + 1] = level * torch.randn(shape, generator=generator)
        return noise.to(embedding.weight)

    def _corrupted(self, noise: Tensor) -> AbstractContextManager[None]:
        return hooks.rewritten(self.lm.model.get_input_embeddings(), lambda states: states + noise)

    def _ends(self, ids: Int[Tensor, "rows width"], first: int, cache: DynamicCache | None) -> Float[Tensor, "rows d"]:
        """The head's input at the last token, for rows whose first column is token `first` of the prompt."""
        rows, width = ids.shape
        mask = torch.ones(rows, first + width, dtype=torch.long, device=ids.device)
        positions = torch.arange(first, first + width, device=ids.device).expand(rows, -1)
        head = self.lm.module(self.lm.arch.head)
        with hooks.record({"head": head}, "input", stop_after="head") as seen, hooks.stoppable():
            forward.call(self.lm, ids, mask, positions, cache)
        return seen["head"][:, -1]

    def _read(self, ends: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """The answer's probability and the likeliest token; many ends share one reading of the head's weights.

        The model runs one token through its last block, to do around its head whatever it does.
        """
        lm, last = self.lm, self.lm.arch.n_layers - 1
        one = torch.ones(1, 1, dtype=torch.long, device=lm.device)
        nothing = ends.new_zeros(1, 1, lm.arch.d_model)
        probability, best = [], []
        for part in ends.split(_HEAD_ROWS):
            with ExitStack() as stack:
                if self._enters:
                    stack.enter_context(forward.entered_at(lm, last, nothing))
                stack.enter_context(hooks.rewritten_input(lm.module(lm.arch.head), partial(_instead, part[None])))
                logits: Tensor = forward.call(lm, self._ids[:, :1], one, one - 1).logits[0]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            probability.append((wide[:, self.token] - wide.logsumexp(-1)).exp())
            best.append(wide.argmax(-1))
        return torch.cat(probability), torch.cat(best)

    def restored(self, columns: Sequence[int]) -> Float[Tensor, "layers n"]:
        """Probability of the answer with the state at (layer, column) put back, for all layers and these columns."""
        noises, n_layers = self.config.noises, self.lm.arch.n_layers
        column = torch.tensor(columns, device=self.lm.device).repeat_interleave(noises)
        which = torch.arange(noises, device=self.lm.device).repeat(len(columns))
        first = min(columns) if self._caches else 0
        past = [(keys[which, :, :first], values[which, :, :first]) for keys, values in self._past] if first else []
        below_top = n_layers - 1 if self.config.kind == "hidden" else n_layers
        ends = [self._restored_at(layer, column, which, first, past) for layer in range(below_top)]
        found = [self._read(torch.cat(ends))[0]] if ends else []
        if below_top < n_layers:  # no block follows the top one, and only the last token is read
            found.append(torch.where(column == self.width - 1, self.high, self._low[which]))
        return torch.cat(found).view(n_layers, len(columns), noises).mean(-1)

    def _restored_at(
        self, layer: int, column: Int[Tensor, " rows"], which: Int[Tensor, " rows"], first: int, past: list[Any]
    ) -> Float[Tensor, "rows d"]:
        """One row for each column and draw, from token `first` on, from the lowest block that a restore changes on."""
        lm = self.lm
        at = torch.arange(len(column), device=lm.device), column - first
        if self.config.kind == "hidden":
            changed, block = range(layer, layer + 1), layer + 1
        else:
            half = self.config.window // 2
            changed = range(max(0, layer - half), min(lm.arch.n_layers, layer - half + self.config.window))
            block = changed[0]
        with ExitStack() as stack:
            if self._enters and block:
                states = self._inputs[block][which, first:]
                if block > changed[-1]:
                    states[at] = self._clean[layer][column]
                    changed = range(0)
                stack.enter_context(forward.entered_at(lm, block, states))
            else:
                stack.enter_context(self._corrupted(self._noise[which, first:]))
            for index in changed:
                put = partial(_put, at=at, clean=self._clean[index][column])
                stack.enter_context(hooks.rewritten(lm.module(self._paths[index]), put))
            cache = forward.filled(past) if past else None
            return self._ends(self._ids[:, first:].expand(len(column), -1), first, cache)


def _instead(other: Tensor, _states: Tensor) -> Tensor:
    return other


def _put(states: Tensor, at: tuple[Tensor, Tensor], clean: Float[Tensor, "rows d"]) -> Tensor:
    """States with the clean one put back in each row."""
    whole = hooks.unflattened(states, len(clean)).clone()
    whole[at] = clean
    return whole.view(states.shape)


def _text(lm: LM, token: int) -> str:
    """The text of one token; the name of a special one."""
    return tokens.decode(lm, [token]) or str(lm.tokenizer.convert_ids_to_tokens(token))


def _traced(run: _Run, edit: Edit, fact: Fact, columns: Sequence[int], batch_tokens: int) -> Trace:
    """Restore at all columns; before the first corrupted token there is nothing to restore."""
    lm = run.lm
    restored = torch.full((lm.arch.n_layers, len(columns)), run.low, dtype=torch.float64)
    place = {column: i for i, column in enumerate(columns)}
    for group in _groups([c for c in columns if c >= run.start], run.width, run.config.noises, batch_tokens):
        restored[:, [place[c] for c in group]] = run.restored(group).double().cpu()
    return Trace(
        config=run.config,
        prompt=edit.text,
        tokens=tuple(_text(lm, token) for token in fact.ids),
        subject=(run.start, run.site),
        answer=tokens.decode(lm, fact.answer).strip(),
        token=_text(lm, run.token),
        known=run.known,
        high=run.high,
        low=run.low,
        columns=tuple(columns),
        restored=restored,
    )


def _groups(columns: Sequence[int], width: int, noises: int, batch_tokens: int) -> Iterator[list[int]]:
    """Cut columns into runs that share a forward.

    All rows of a run begin at its first column, so a long run wastes tokens and a short one wastes forwards: the cut
    with the least of both, found from the end.
    """
    n = len(columns)
    best: list[tuple[float, int]] = [(0.0, n)] * (n + 1)
    for i in reversed(range(n)):
        options = []
        for j in range(i + 1, n + 1):
            size = noises * (j - i) * (width - columns[i])
            if j > i + 1 and size > batch_tokens:
                break
            options.append((size + _FORWARD_COST + best[j][0], j))
        best[i] = min(options)
    start = 0
    while start < n:
        stop = best[start][1]
        yield list(columns[start:stop])
        start = stop
