"""Logit lens: can the answer be read from the states inside the model, layer by layer?

What each block leaves at the prompt's last position is taken through the model's own final norm and head, as if the
model ended there (nostalgebraist, 2020). Edits and refusals may act late and leave the old fact in the layers below
(arXiv 2505.12636, 2410.00382). Looked for is the first token of the answer; where answers are sentences that token says
little, and the twin says how little.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retcon import forward, hooks, patch, progress, tokens
from retcon.errors import RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.probes.scene import Finding, Scene, question_ids

__all__ = ["Lens", "ranks", "read", "run", "tail"]

_PROBE_IDS = [5, 9, 7, 6, 8]
_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """Options of the logit lens."""

    top: int = 10
    """An answer counts as readable where its first token is among so many."""


def run(scene: Scene, config: Lens) -> Iterator[Finding]:
    """The share of the questions whose answer's first token is among the top in some layer."""
    if config.top < 1:
        raise RetconError(f"the top {config.top} hold nothing; give the lens at least 1")
    lm = scene.lm
    prompts = [question_ids(lm, item.question) for item in scene.items]
    wanted = [tokens.target_ids(lm, lm.render(item.question), item.answer)[0] for item in scene.items]
    tail(lm)  # found on the bare model, and then known
    found = {}
    for arm in scene.arms:
        with arm.on(lm):
            found[arm.name] = ranks(lm, prompts, wanted).tolist()  # by question, by layer
    out = {arm: {i: float(min(layers) <= config.top) for i, layers in enumerate(rows)} for arm, rows in found.items()}
    detail: dict[str, Any] = {
        "layers": lm.arch.n_layers,
        "median_lowest_rank": {arm: statistics.median(map(min, rows)) for arm, rows in found.items()},
        "layers_in_top": {
            arm: statistics.fmean(sum(rank <= config.top for rank in layers) for layers in rows)
            for arm, rows in found.items()
        },
        "median_rank_by_layer": {
            arm: [statistics.median(column) for column in zip(*rows, strict=True)] for arm, rows in found.items()
        },
    }
    yield Finding({"top": config.top}, out, detail=detail, answers=False)


@torch.no_grad()
def ranks(lm: LM, prompts: Sequence[list[int]], wanted: Sequence[int]) -> Int[Tensor, "n layers"]:
    """The rank, from 1, of a token at each prompt's last position when the model is read after each block.

    Raises:
        UnsupportedModel: what follows the last block cannot be run by itself.
    """
    found = torch.zeros(len(prompts), lm.arch.n_layers, dtype=torch.long)
    lengths = [len(ids) for ids in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    blocks = {path: lm.module(path) for path in lm.arch.blocks}
    with lm.inference(), progress.task("reading layers", len(prompts)) as advance:
        for batch in forward.batches(order, lengths, _BATCH_TOKENS):
            rows = forward.align([prompts[i] for i in batch], [lengths[i] for i in batch], lm.device)
            with patch.prompts(lm.model, rows.width - 1), hooks.record(blocks, "output") as seen:
                forward.call(lm, rows.ids, rows.mask, rows.positions)
            asked = torch.tensor([wanted[i] for i in batch])
            for layer, path in enumerate(lm.arch.blocks):
                logits = read(lm, hooks.unflattened(seen[path], len(batch))[:, -1])
                own = logits.gather(1, asked.to(logits.device)[:, None])
                found[batch, layer] = 1 + (logits > own).sum(1).cpu()
            advance(len(batch))
    return found


def read(lm: LM, states: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
    """Logits of states, as if the model ended there; up to a scale or a cap that keep their order. In fp32."""
    for path in (*tail(lm), lm.arch.head):
        module = lm.module(path)
        weight = next(module.parameters(), None)
        states = states if weight is None else states.to(weight.device, weight.dtype)
        states = module.forward(states)  # no hook of a patch takes this for a forward of the model
    return states.float()


def tail(lm: LM) -> tuple[str, ...]:
    """Paths of the modules that run between the last block and the head, in order: the final norm, as a rule.

    Found by a short forward, and tried: they must make of the last block's output what the head is given.

    Raises:
        UnsupportedModel: they do not.
    """
    if "tail" not in lm.notes:
        lm.notes["tail"] = _found(lm)
    return tuple(lm.notes["tail"])


@torch.no_grad()
def _found(lm: LM) -> tuple[str, ...]:
    last = lm.arch.blocks[-1]
    order: list[str] = []
    running = False

    def begin(*_: Any) -> None:
        nonlocal running
        running = True

    def note(path: str, *_: Any) -> None:
        if running:
            order.append(path)

    leaves = [
        (path, module)
        for path, module in lm.model.named_modules()
        if path != lm.arch.head and not any(module.children()) and not _inside(path, lm.arch.blocks)
    ]
    rows = forward.align([_PROBE_IDS], [len(_PROBE_IDS)], lm.device)
    with lm.inference(), ExitStack() as stack:
        stack.callback(lm.module(last).register_forward_hook(begin).remove)
        for path, module in leaves:
            stack.callback(module.register_forward_pre_hook(partial(note, path)).remove)
        out = stack.enter_context(hooks.record({last: lm.module(last)}, "output"))
        head = stack.enter_context(hooks.record({lm.arch.head: lm.module(lm.arch.head)}, "input"))
        forward.call(lm, rows.ids, rows.mask, rows.positions)
    states = hooks.unflattened(out[last], 1)
    for path in order:
        states = lm.module(path).forward(states)
    given = head[lm.arch.head].view_as(states) if head[lm.arch.head].numel() == states.numel() else None
    if given is None or not torch.allclose(states.float(), given.float(), rtol=1e-3, atol=1e-3):
        raise UnsupportedModel(
            f"what this {lm.arch.family} model does between its last block and its head cannot be run by itself, so "
            "its layers cannot be read"
        )
    return tuple(order)


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or path.startswith(f"{block}.") for block in blocks)
