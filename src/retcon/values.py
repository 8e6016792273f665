"""The target search: which hidden state at the subject would make the model say the new answer.

One copy serves all methods. For each fact a shift `delta` of the state at the subject's last token is sought that
lowers

    J(delta) = NLL(target | prompt under each template) + kl * KL(p_delta || p_clean) + weight_decay * |delta| / |h0|^2

(ROME, arXiv 2202.05262; MEMIT, arXiv 2210.07229), with the model frozen: by Adam as published, or, a third of the steps
and a shorter shift, by steps of a set length along the gradient. What makes it fast, and changes no result:

- all facts of a batch run together, each with its own shift, stop and clamp;
- only the blocks above the site run, and only the tokens from the site on, against cached keys and values of the rest;
- logits are taken only where a target token or the essence is read;
- a fact that has met its stop leaves the batch.

`retcon.testing.reference` is the plain, slow form of the same search, and the tests hold the two together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import DynamicCache

from retcon import forward, hooks, tokens
from retcon.arch import frozen
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit

__all__ = ["Found", "Path", "Penalty", "Row", "SearchConfig", "Step", "fast_path", "rows_of", "search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Options of the target search."""

    layer: int
    """The layer whose state is shifted."""
    site: Literal["layer_out", "module_out"] = "layer_out"
    """Where: the block's output, or the MLP projection's output (the same where the write gain is 1, norms aside)."""
    steps: int = 25
    """Evaluations of the loss at most; the published schedules do one update less, and so does this."""
    optimizer: Literal["adam", "normalised"] = "adam"
    """`adam`, as published, or steps of a set length along the running mean of the gradient's direction (ours)."""
    lr: float = 0.5
    """Adam's learning rate; for `normalised`, the length of a step in units of |h0|."""
    weight_decay: float = 0.5
    """Weight of |delta| / |h0|^2."""
    kl: float = 0.0625
    """Weight of the essence term: KL from the clean to the shifted next-token distribution after "{subject} is a"."""
    clamp: float = 0.75
    """|delta| is kept at most this many times |h0|."""
    stop: float = 5e-2
    """A fact is finished, before its update, once its loss is below this."""
    stop_probability: float | None = None
    """If set, a fact is finished as soon as every target token has at least this probability in every row."""
    momentum: float = 0.9
    """Decay rate of the mean of gradients (Adam's first)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products above the site; shifts, losses and Adam are always fp32 or better."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a fact's search."""

    ids: list[int]
    """The prompt's ids, and all target ids but the last; the essence row ends at its subject."""
    site: int
    """Index of the subject's last token."""
    target: list[int]
    """The target's ids; empty for the essence row."""
    fact: int
    """Index of the fact in the batch."""
    weight: float = 1.0
    """Share of the row in the fact's negative log-likelihood."""
    template: int = 0
    """Which template the row begins with; rows of one template share their first tokens."""


@dataclass(slots=True)
class Step:
    """What a penalty sees: the facts still searched and their shifts."""

    facts: Int[Tensor, " n"]
    """Indices of these facts in the whole list of edits."""
    delta: Float[Tensor, "n d"]
    """Their shifts; gradients flow through it."""
    base: Float[Tensor, "n d"]
    """Their clean site activations h0."""
    number: int
    """Which evaluation this is, from 0."""


Path = Literal["shared", "cached", "whole"]
"""How the search runs a model; see `fast_path`."""

_FILLER = [6, 9, 7, 10, 8, 11, 5, 9] * 64
_SMALL_CHUNK = 160
"""Tokens from which on a chunk of its own is no waste."""
_SHARED_TOKENS = 4
"""Common first tokens from which on it pays to run them once."""

Penalty = Callable[[Step], Float[Tensor, " n"]]
"""An extra loss for each fact; it may keep and consult the results of earlier facts."""


@dataclass(slots=True)
class Found:
    """The result of a search over N facts."""

    base: Float[Tensor, "N d"]
    """Clean site activation h0 of the bare prompt."""
    delta: Float[Tensor, "N d"]
    """The shift found; `base + delta` is the target."""
    loss: Float[Tensor, " N"]
    """J at the last evaluation made."""
    evaluations: Int[Tensor, " N"]
    """Evaluations made."""
    probability: Float[Tensor, " N"]
    """Geometric mean probability of the target's tokens over the rows, at the last evaluation made."""

    @property
    def target(self) -> Float[Tensor, "N d"]:
        """The states to write, z = h0 + delta."""
        return self.base + self.delta


def rows_of(lm: LM, edit: Edit, templates: Sequence[str], fact: int, *, essence: bool = True) -> list[Row]:
    """The rows of one fact: its prompt under each template ("" is the bare prompt), then the essence row.

    Raises:
        RequestError: the edit has no subject, or its target has no token.
    """
    if edit.subject is None:
        raise RequestError(f"{edit.prompt!r} has no subject; this method needs one: write the subject as {{}}")
    text = lm.render(edit.text)
    target = tokens.target_ids(lm, text, edit.target)
    rows = []
    for index, template in enumerate(templates):
        located = tokens.locate_subject(lm, edit.prompt, edit.subject, template)
        rows.append(Row(located.ids + target[:-1], located.site, target, fact, 1 / len(templates), index))
    if essence:
        located = tokens.locate_subject(lm, "{} is a", edit.subject)
        rows.append(Row(located.ids[: located.site + 1], located.site, [], fact))
    return rows


@dataclass(slots=True)
class _Chunk:
    """Rows that run together, with all that the clean pass found for them."""

    ids: Int[Tensor, "rows width"]
    mask: Int[Tensor, "rows past_and_width"]
    positions: Int[Tensor, "rows width"]
    column: int
    """Column of the site in `ids`."""
    states: Float[Tensor, "rows width d"] | None
    """Clean input of the first block that runs; None where the whole model runs."""
    past: list[tuple[Tensor, Tensor]]
    """Keys and values of the columns before `ids`, of each layer."""
    fact: Int[Tensor, " rows"]
    target_at: tuple[Tensor, Tensor]
    """Rows and columns whose logits predict target tokens."""
    token: Int[Tensor, " targets"]
    weight: Float[Tensor, " targets"]
    essence: Int[Tensor, " essence"]
    """Rows of the essence term; it is read at the site."""
    clean: Float[Tensor, "essence vocabulary"]
    """Clean log-probabilities there."""

    def kept(self, keep: Bool[Tensor, " rows"]) -> "_Chunk":
        """The chunk with only the rows of `keep`."""
        index = keep.nonzero()[:, 0]
        renumbered = keep.cumsum(0) - 1
        rows, columns = self.target_at
        on, essence_on = keep[rows], keep[self.essence]
        return replace(
            self,
            ids=self.ids[index],
            mask=self.mask[index],
            positions=self.positions[index],
            states=None if self.states is None else self.states[index],
            past=[(keys[index], values[index]) for keys, values in self.past],
            fact=self.fact[index],
            target_at=(renumbered[rows[on]], columns[on]),
            token=self.token[on],
            weight=self.weight[on],
            essence=renumbered[self.essence[essence_on]],
            clean=self.clean[essence_on],
        )


def search(
    lm: LM,
    edits: Sequence[Edit],
    config: SearchConfig,
    templates: Sequence[str] = ("",),
    *,
    penalty: Penalty | None = None,
    numbers: Sequence[int] | None = None,
    chunk_tokens: int = 256,
    fast: bool | None = None,
    advance: Callable[[float], None] = lambda _done: None,
) -> Found:
    """Search the targets of all `edits` together.

    Args:
        lm: the model, with any patch already on.
        edits: the facts; they do not influence each other unless a penalty makes them.
        config: options.
        templates: texts put before each prompt; the first must be "", the bare prompt.
        penalty: an extra loss for each fact.
        numbers: indices of the edits in the caller's list, for the penalty.
        chunk_tokens: tokens run in one forward; it bounds memory.
        fast: force (`cached`) or forbid the fast path; by default the fastest one that a probe found right.
        advance: told how many facts have just been finished.

    Raises:
        RequestError: an edit has no subject, or a target no token.
    """
    if not templates or templates[0] != "":
        raise ValueError('the first template is "", the bare prompt')
    path = fast_path(lm, config) if fast is None else ("cached" if fast else "whole")
    rows = [row for i, edit in enumerate(edits) for row in rows_of(lm, edit, templates, i, essence=config.kl > 0)]
    with frozen(lm.model):
        base, chunks = _prepare(lm, rows, len(edits), config, chunk_tokens, path)
        index = torch.arange(len(edits)) if numbers is None else torch.tensor(list(numbers))
        with _half_weights(lm, config):
            return _descend(lm, chunks, base, config, penalty, index.to(base.device), advance)


# ---------------------------------------------------------------------------------------------- the descent


def _descend(
    lm: LM,
    chunks: list[_Chunk],
    base: Float[Tensor, "n d"],
    config: SearchConfig,
    penalty: Penalty | None,
    numbers: Int[Tensor, " n"],
    advance: Callable[[float], None],
) -> Found:
    """Descend on all shifts at once; a fact that has stopped keeps its shift and leaves the chunks."""
    n, _ = base.shape
    delta = torch.zeros_like(base)
    first, second = torch.zeros_like(base), torch.zeros_like(base)
    radius = config.clamp * base.norm(dim=1)
    scale = base.norm(dim=1).square()
    loss = torch.full((n,), torch.nan, dtype=base.dtype, device=base.device)
    probability = torch.zeros_like(loss)
    evaluations = torch.zeros(n, dtype=torch.long, device=base.device)
    active = torch.ones(n, dtype=torch.bool, device=base.device)
    for number in range(max(config.steps - 1, 1)):
        value, gradient, nll, least = _evaluate(lm, chunks, delta, config)
        norm = delta.norm(dim=1)
        value = value + config.weight_decay * norm / scale
        gradient = gradient + config.weight_decay * (delta / (norm * scale).clamp_min(1e-30)[:, None])
        if penalty is not None:
            more, slope = _penalised(penalty, numbers, delta, base, active, number)
            value, gradient = value + more, gradient + slope
        loss = torch.where(active, value, loss)
        probability = torch.where(active, (-nll).exp(), probability)
        evaluations += active
        done = value < config.stop
        if config.stop_probability is not None:
            done |= least >= config.stop_probability
        finished = active & done
        active = active & ~done
        advance(float(finished.sum()))
        if not active.any() or config.steps <= 1:
            break
        if config.optimizer == "normalised":
            first.mul_(config.momentum).add_(F.normalize(gradient, dim=1))
            step = -config.lr * base.norm(dim=1, keepdim=True) * F.normalize(first, dim=1)
        else:
            first.mul_(config.momentum).add_(gradient, alpha=1 - config.momentum)
            second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            unbiased = first / (1 - config.momentum ** (number + 1))
            step = -config.lr * unbiased / ((second / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8)
        moved = delta + step
        moved = moved * (radius / moved.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)[:, None]
        delta = torch.where(active[:, None], moved, delta)
        chunks = _compacted(chunks, active)
    advance(float(active.sum()))
    return Found(base, delta, loss, evaluations, probability)


def _penalised(
    penalty: Penalty, numbers: Tensor, delta: Tensor, base: Tensor, active: Tensor, number: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """Value and gradient of an extra loss over the active facts, zero elsewhere."""
    index = active.nonzero()[:, 0]
    shift = delta[index].detach().requires_grad_()
    with torch.enable_grad():
        extra = penalty(Step(numbers[index], shift, base[index], number))
        # a penalty may have nothing to say of these facts, and then no gradient
        (slope,) = torch.autograd.grad(extra.sum(), shift, allow_unused=True) if extra.requires_grad else (None,)
    value, gradient = torch.zeros_like(delta[:, 0]), torch.zeros_like(delta)
    value[index] = extra.detach()
    if slope is not None:
        gradient[index] = slope
    return value, gradient


def _compacted(chunks: list[_Chunk], active: Bool[Tensor, " n"]) -> list[_Chunk]:
    """Drop the rows of finished facts, once a quarter of a chunk is idle."""
    kept = []
    for chunk in chunks:
        keep = active[chunk.fact]
        alive = int(keep.sum())
        if alive == 0:
            continue
        kept.append(chunk.kept(keep) if alive < 0.75 * len(keep) else chunk)
    return kept


def _evaluate(
    lm: LM, chunks: list[_Chunk], delta: Float[Tensor, "n d"], config: SearchConfig
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """NLL + kl * KL of each fact, its gradient, the NLL alone, and the least probability of a target token."""
    value, gradient = torch.zeros_like(delta[:, 0]), torch.zeros_like(delta)
    nll = torch.zeros_like(value)
    least = torch.ones_like(value)
    for chunk in chunks:
        shift = delta[chunk.fact].detach().requires_grad_()
        with torch.enable_grad():
            logits = _shifted_logits(lm, chunk, shift, config)
            n = len(chunk.token)
            miss = F.cross_entropy(logits[:n], chunk.token, reduction="none") if n else logits[:0, 0]
            total = (miss * chunk.weight).sum()
            if len(chunk.essence):
                now = logits[n:].log_softmax(-1)
                drift = config.kl * (now.exp() * (now - chunk.clean)).sum(-1)
                total = total + drift.sum()
        (slope,) = torch.autograd.grad(total, shift)
        gradient.index_add_(0, chunk.fact, slope.to(gradient.dtype))
        if n:
            owner = chunk.fact[chunk.target_at[0]]
            miss = miss.detach().to(value.dtype)
            nll.index_add_(0, owner, miss * chunk.weight)
            least.scatter_reduce_(0, owner, (-miss).exp(), "amin")
        if len(chunk.essence):
            value.index_add_(0, chunk.fact[chunk.essence], drift.detach().to(value.dtype))
    return value + nll, gradient, nll, least


def _shifted_logits(
    lm: LM, chunk: _Chunk, shift: Float[Tensor, "rows d"], config: SearchConfig
) -> Float[Tensor, "targets_and_essence vocabulary"]:
    """Logits at all places the loss reads, with the site of each row shifted."""

    def shifted(states: Tensor) -> Tensor:
        if states.ndim == 2:  # OPT flattens its rows around the MLP
            return shifted(hooks.unflattened(states, len(chunk.fact))).flatten(0, 1)
        left, site, right = states.split([chunk.column, 1, states.shape[1] - chunk.column - 1], 1)
        return torch.cat([left, site + shift[:, None].to(states.dtype), right], 1)

    rows = torch.cat([chunk.target_at[0], chunk.essence])
    columns = torch.cat([chunk.target_at[1], torch.full_like(chunk.essence, chunk.column)])
    with ExitStack() as stack:
        if chunk.states is not None:
            first = config.layer + 1 if config.site == "layer_out" else config.layer
            states = shifted(chunk.states) if config.site == "layer_out" else chunk.states
            stack.enter_context(forward.entered_at(lm, first, states))
        if config.site == "module_out":
            stack.enter_context(hooks.rewritten(lm.projection(config.layer), shifted))
        elif chunk.states is None:
            stack.enter_context(hooks.rewritten(lm.block(config.layer), shifted))
        stack.enter_context(forward.gathered_head(lm, rows, columns))
        stack.enter_context(_autocast(lm, config))
        stack.enter_context(_kernels(lm))
        cache = forward.filled(chunk.past) if chunk.past else None
        logits: Tensor = forward.call(lm, chunk.ids, chunk.mask, chunk.positions, cache).logits[0]
    return logits if logits.dtype == torch.float64 else logits.float()


def _autocast(lm: LM, config: SearchConfig) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is asked for and the model is fp32."""
    if config.precision == "bfloat16" and lm.dtype == torch.float32:
        return torch.autocast(lm.device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def _half_weights(lm: LM, config: SearchConfig) -> Iterator[None]:
    """Keep bfloat16 copies of the weights that the descent runs; autocast would make them anew in every forward."""
    swapped: list[tuple[nn.Module, nn.Parameter]] = []
    if config.precision == "bfloat16" and lm.dtype == torch.float32:
        above = [lm.block(layer) for layer in range(_first_block(config), lm.arch.n_layers)]
        modules = [part for block in above for part in block.modules()] + [lm.module(lm.arch.head)]
        for module in modules:
            if isinstance(module, nn.Linear) and isinstance(module.weight, nn.Parameter):
                swapped.append((module, module.weight))
    try:
        for module, weight in swapped:
            module._parameters["weight"] = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for module, weight in swapped:
            module._parameters["weight"] = weight


def _kernels(lm: LM) -> AbstractContextManager[object]:
    """On a CPU, attention by plain products: the flash kernel's backward costs more, most of all in bfloat16."""
    return sdpa_kernel(SDPBackend.MATH) if lm.device.type == "cpu" else nullcontext()


# ---------------------------------------------------------------------------------------------- the clean pass


@dataclass(slots=True)
class _Shared:
    """First tokens that all rows of a template have in common, run once: keys and values, padded on the left."""

    length: dict[int, int]
    """Tokens shared, by template; a template without any is absent."""
    place: dict[int, int]
    """Row of `mask` and of `layers`, by template; the last row stands for no shared token."""
    mask: Int[Tensor, "templates width"]
    layers: list[tuple[Tensor, Tensor]]


def _prepare(
    lm: LM, rows: list[Row], n: int, config: SearchConfig, chunk_tokens: int, path: Path
) -> tuple[Float[Tensor, "n d"], list[_Chunk]]:
    """Run every row once, clean: site activations h0 of the bare rows, and the chunks ready to be shifted."""
    whole = path == "whole"
    bare: dict[int, int] = {}
    for i, row in enumerate(rows):
        bare.setdefault(row.fact, i)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids) - rows[i].site, rows[i].site, i))
    shared = _shared(lm, rows) if path == "shared" else None
    base: Tensor | None = None
    chunks = []
    for batch in _cut(order, rows, chunk_tokens, whole=whole):
        part = [rows[i] for i in batch]
        chunk, sites = _clean_whole(lm, part, config) if whole else _clean(lm, part, config, shared)
        if base is None:
            base = torch.zeros(n, sites.shape[1], dtype=sites.dtype, device=sites.device)
        for place, i in enumerate(batch):
            if bare[rows[i].fact] == i:
                base[rows[i].fact] = sites[place]
        chunks.append(chunk)
    if base is None:
        raise RequestError("there is no edit to search a target for")
    return base, chunks


def _cut(order: list[int], rows: list[Row], chunk_tokens: int, *, whole: bool) -> Iterator[list[int]]:
    """Cut sorted rows into chunks of at most `chunk_tokens` tokens run, and of a third as many logits read.

    A chunk also ends where the next row is so much wider that padding would cost more than a chunk of its own.
    """
    batch: list[int] = []
    reads = 0
    for i in order:
        width = len(rows[i].ids) - (0 if whole else rows[i].site)
        more = len(rows[i].target) or 1
        if batch:
            first = len(rows[batch[0]].ids) - (0 if whole else rows[batch[0]].site)
            full = (len(batch) + 1) * width > chunk_tokens or reads + more > max(chunk_tokens // 3, 32)
            if full or (width > 1.2 * first and len(batch) * first >= _SMALL_CHUNK):
                yield batch
                batch, reads = [], 0
        batch.append(i)
        reads += more
    if batch:
        yield batch


def _shared(lm: LM, rows: list[Row]) -> _Shared | None:
    """Find and run the tokens that the rows of each template begin with; None where nothing is to be gained."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row.target:
            groups.setdefault(row.template, []).append(row)
    length = {}
    for template, members in groups.items():
        common = min(row.site for row in members)
        for row in members:
            same = (a == b for a, b in zip(row.ids[:common], members[0].ids, strict=False))
            common = next((k for k, equal in enumerate(same) if not equal), common)
        if len(members) > 1 and common >= _SHARED_TOKENS:
            length[template] = common
    if not length:
        return None
    heads = [groups[template][0].ids[:common] for template, common in length.items()]
    aligned = forward.align(heads, [len(head) for head in heads], lm.device)
    cache = DynamicCache()
    last = lm.arch.blocks[-1]
    with torch.no_grad(), hooks.record({last: lm.module(last)}, "output", stop_after=last), hooks.stoppable():
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions, cache)
    layers: list[Any] = list(cache.layers)
    return _Shared(
        length,
        {template: i for i, template in enumerate(length)},
        F.pad(aligned.mask, (0, 0, 0, 1)),
        [tuple(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)) for x in (layer.keys, layer.values)) for layer in layers],  # type: ignore[misc]
    )


def _clean(
    lm: LM, rows: list[Row], config: SearchConfig, shared: _Shared | None
) -> tuple[_Chunk, Float[Tensor, "rows d"]]:
    """Run the rows of one chunk clean: whole up to the site's layer, and above it only what stands before the site."""
    head = [shared.length.get(row.template, 0) if shared and row.target else 0 for row in rows]
    aligned = forward.align(
        [row.ids[k:] for row, k in zip(rows, head, strict=True)],
        [row.site - k for row, k in zip(rows, head, strict=True)],
        lm.device,
    )
    split, first = aligned.split, _first_block(config)
    past: list[tuple[Tensor, Tensor]] = []
    mask, positions = aligned.mask, aligned.positions
    if shared is not None and any(head):
        which = torch.tensor(
            [shared.place[row.template] if k else len(shared.place) for row, k in zip(rows, head, strict=True)],
            device=lm.device,
        )
        past = [(keys[which], values[which]) for keys, values in shared.layers]
        mask = torch.cat([shared.mask[which], mask], 1)
        positions = positions + torch.tensor(head, device=lm.device)[:, None]
    above, site_path = lm.arch.blocks[first - 1], _site(lm, config)
    modules = {path: lm.module(path) for path in (above, site_path)}
    with torch.no_grad(), _kernels(lm):
        with hooks.record(modules, "output", stop_after=site_path) as seen, hooks.stoppable():
            forward.call(lm, aligned.ids, mask, positions, forward.filled(past) if past else None)
        states = seen[above]
        before = _run_before(lm, aligned.ids, mask, positions, states, split, past, config)
    chunk = _chunk(lm, rows, aligned.ids[:, split:], mask, positions[:, split:], 0, states[:, split:].clone(), before)
    chunk.clean = _clean_essence(lm, chunk, config)
    wide = torch.float64 if states.dtype == torch.float64 else torch.float32
    return chunk, hooks.unflattened(seen[site_path], len(rows))[:, split].to(wide)


def _run_before(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    states: Tensor,
    split: int,
    past: list[tuple[Tensor, Tensor]],
    config: SearchConfig,
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of all that stands before the site, in the layers that the search runs.

    Layers that it never runs get placeholders that hold no memory.
    """
    first, last = _first_block(config), lm.arch.blocks[-1]
    if not split:
        return past
    width = mask.shape[1] - ids.shape[1] + split
    cache = forward.filled(past) if past else DynamicCache()
    with (
        _autocast(lm, config),
        forward.entered_at(lm, first, states[:, :split]),
        hooks.record({last: lm.module(last)}, "output", stop_after=last),
        hooks.stoppable(),
    ):
        forward.call(lm, ids[:, :split], mask[:, :width], positions[:, :split], cache)
    layers: list[Any] = list(cache.layers)
    run = [(_held(lm, config, layer.keys), _held(lm, config, layer.values)) for layer in layers[first:]]
    keys, values = (x.new_zeros(1).expand(x.shape) for x in run[0])
    return [(keys, values)] * first + run


def _held(lm: LM, config: SearchConfig, states: Tensor) -> Tensor:
    """Keys or values as they are kept: in bfloat16 where every product of them will be."""
    mixed = config.precision == "bfloat16" and lm.dtype == torch.float32
    return states.to(torch.bfloat16) if mixed else states


def _clean_whole(lm: LM, rows: list[Row], config: SearchConfig) -> tuple[_Chunk, Float[Tensor, "rows d"]]:
    """The chunk of a model without a fast path: whole rows, through the whole model."""
    aligned = forward.align([row.ids for row in rows], [row.site for row in rows], lm.device)
    chunk = _chunk(lm, rows, aligned.ids, aligned.mask, aligned.positions, aligned.split, None, [])
    path = _site(lm, config)
    with torch.no_grad(), hooks.record({path: lm.module(path)}, "output", stop_after=path) as seen, hooks.stoppable():
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
    chunk.clean = _clean_essence(lm, chunk, config)
    wide = torch.float64 if seen[path].dtype == torch.float64 else torch.float32
    return chunk, hooks.unflattened(seen[path], len(rows))[:, aligned.split].to(wide)


def _chunk(
    lm: LM,
    rows: list[Row],
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    column: int,
    states: Tensor | None,
    past: list[tuple[Tensor, Tensor]],
) -> _Chunk:
    """A chunk of these rows; targets are read where they are predicted, the essence at the site."""
    device = ids.device
    at = [
        (r, column + len(row.ids) - row.site - len(row.target) + t)
        for r, row in enumerate(rows)
        for t in range(len(row.target))
    ]
    weights = [row.weight / len(row.target) for row in rows for _ in row.target]
    return _Chunk(
        ids=ids,
        mask=mask,
        positions=positions,
        column=column,
        states=states,
        past=past,
        fact=torch.tensor([row.fact for row in rows], device=device),
        target_at=(
            torch.tensor([r for r, _ in at], dtype=torch.long, device=device),
            torch.tensor([c for _, c in at], dtype=torch.long, device=device),
        ),
        token=torch.tensor([token for row in rows for token in row.target], dtype=torch.long, device=device),
        weight=torch.tensor(weights, dtype=torch.promote_types(lm.dtype, torch.float32), device=device),
        essence=torch.tensor([r for r, row in enumerate(rows) if not row.target], dtype=torch.long, device=device),
        clean=torch.zeros(0, 0, device=device),
    )


def _clean_essence(lm: LM, chunk: _Chunk, config: SearchConfig) -> Float[Tensor, "essence vocabulary"]:
    """Log-probabilities of the essence rows before anything is shifted."""
    if not len(chunk.essence):
        return chunk.clean
    keep = torch.zeros(len(chunk.fact), dtype=torch.bool, device=chunk.fact.device)
    keep[chunk.essence] = True
    chunk.clean = torch.zeros(len(chunk.essence), 1, device=chunk.fact.device)  # so that `kept` can cut it
    only = chunk.kept(keep)
    with torch.no_grad():
        nothing = torch.zeros(len(only.fact), lm.arch.d_model, device=chunk.fact.device)
        return _shifted_logits(lm, only, nothing, config).log_softmax(-1)


def _first_block(config: SearchConfig) -> int:
    """The first block that runs in the fast path."""
    return config.layer + 1 if config.site == "layer_out" else config.layer


def _site(lm: LM, config: SearchConfig) -> str:
    """Path of the module whose output is shifted."""
    return lm.arch.blocks[config.layer] if config.site == "layer_out" else lm.arch.mlp_out[config.layer]


def fast_path(lm: LM, config: SearchConfig) -> Path:
    """The fastest way to search that gives this model's loss and gradient; probed once against whole rows.

    `shared`: tokens that rows have in common run once, the rest of what stands before the site once a row, and each
    evaluation only the tokens from the site on, in the blocks above it. `cached`: without the first of these, for
    models that measure distance by cache slot (sliding windows, some ALiBi). `whole`: whole rows through the whole
    model, for models with recurrence, a cache of their own kind, or blocks that cannot be entered half-way; slower,
    the same result.
    """
    if not 1 <= _first_block(config) < lm.arch.n_layers:
        return "whole"
    key = f"fast_path_{config.site}"
    if key not in lm.notes:
        lm.notes[key] = _probe_fast_path(lm, config)
    found: Path = lm.notes[key]
    return found


def _probe_fast_path(lm: LM, config: SearchConfig) -> Path:
    """Loss and gradient of two made-up facts along each path, at a shift that is not zero."""
    rows = [
        Row([5, 9, 7, 6, 8, 11], 3, [8, 11, 6], 0),
        Row([6, 7, 10, 5], 1, [5, 9], 1),
        Row([6, 9, 7, 10, 8, 5, 11, 9, 5], 5, [9, 5], 0, 0.5, 1),
        Row([6, 9, 7, 10, 8, 9, 5, 11, 9, 5], 7, [9, 5], 1, 0.5, 1),
        Row([9, 8, 5], 2, [], 1),
    ]
    if lm.arch.window is not None:  # long enough for the window to matter
        rows = [replace(row, ids=_FILLER[: lm.arch.window] + row.ids, site=row.site + len(_FILLER[: lm.arch.window]))
                for row in rows]  # fmt: skip
    exact = replace(config, precision="float32")

    def run(path: Path) -> Tensor:
        with frozen(lm.model):
            base, chunks = _prepare(lm, rows, 2, exact, 64, path)
            noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0)).to(base)
            delta = 0.1 * base.norm(dim=1, keepdim=True) * F.normalize(noise, dim=1)
            value, gradient, *_ = _evaluate(lm, chunks, delta, exact)
        return torch.cat([value, gradient.flatten() * base.norm()])

    wanted = run("whole")
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    ways: tuple[Path, ...] = ("shared", "cached")
    for path in ways:
        try:
            found = run(path)
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, KeyError):
            continue  # the model does not take part in this way of running it
        if (found - wanted).norm() <= tolerance * wanted.norm():
            return path
    return "whole"
