"""What projections read, and how they should change what they write, where a model predicts the answers of edits.

One forward and one backward for each edit, packed; no weight gets a gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from retcon import forward, hooks, patch, tokens
from retcon.arch import frozen
from retcon.lm import LM
from retcon.patch.base import projection
from retcon.precision import Precision, autocast, kernels, loss_scale
from retcon.requests import Edit

__all__ = ["Answers", "read_answers"]


@dataclass(slots=True)
class Answers:
    """What a model says of answer tokens, in order of edits and tokens."""

    owner: Int[Tensor, " n"]
    """The edit that each token belongs to."""
    losses: Float[Tensor, " n"]
    """-log p of each token, in nats."""
    weights: Float[Tensor, " n"]
    """Its weight in the loss that the gradient is of."""
    inputs: dict[str, Float[Tensor, "n d_in"]]
    """h: what each projection reads where the token is predicted."""
    gradients: dict[str, Float[Tensor, "n d_out"]]
    """g: the gradient of the loss there at what it writes."""


def read_answers(
    lm: LM,
    edits: Sequence[Edit],
    paths: Sequence[str],
    *,
    micro_batch: int | None = None,
    precision: Precision = "float32",
    batch_tokens: int = 1024,
) -> Answers:
    """Run every edit's prompt and answer, and the gradient of the answers' loss back to the projections at `paths`.

    A projection's output gets a zero added where answers are predicted, and the gradient is taken of that zero: so it
    is read just there, nothing below the lowest projection runs backwards, and no weight has a gradient.

    Args:
        lm: the model, with any patch already on.
        edits: the facts.
        paths: full module paths of Linear and Conv1D projections.
        micro_batch: so many edits, in their order, share one loss, the mean over their answer tokens; None for the sum
            over all tokens.
        precision: dtype of the matrix products of a model in fp32.
        batch_tokens: tokens of one forward, padding included; rows are packed by length, which changes no result.

    Raises:
        RequestError: a target has no token.
    """
    texts = [lm.render(edit.text) for edit in edits]
    prompts = [tokens.encode(lm, text) for text in texts]
    targets = [tokens.target_ids(lm, text, edit.target) for text, edit in zip(texts, edits, strict=True)]
    rows = [[*prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)]
    found = _empty(lm, torch.tensor([i for i, target in enumerate(targets) for _ in target]), paths, micro_batch)
    first = [0, *torch.bincount(found.owner).cumsum(0).tolist()]
    lengths = [len(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (lengths[i], i))
    with frozen(lm.model), autocast(lm, precision), kernels(lm):
        for batch in forward.batches(order, lengths, batch_tokens):
            aligned = forward.align([rows[i] for i in batch], [0] * len(batch), lm.device)
            at = [(r, len(prompts[i]) - 1 + t) for r, i in enumerate(batch) for t in range(len(targets[i]))]
            place = torch.tensor([first[i] + t for i in batch for t in range(len(targets[i]))])
            token = torch.tensor([token for i in batch for token in targets[i]])
            with patch.prompts(lm.model, [len(prompts[i]) - 1 for i in batch]):
                _read_batch(lm, aligned, at, token, place.to(lm.device), found)
    return found


def _empty(lm: LM, owner: Int[Tensor, " n"], paths: Sequence[str], micro_batch: int | None) -> Answers:
    """Room for what will be read, in fp32, or fp64 where the model is."""
    dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32

    def room(*width: int) -> Tensor:
        return torch.zeros(len(owner), *width, dtype=dtype, device=lm.device)

    shapes = {path: projection(lm.model, path)[1] for path in paths}
    weights = room() + 1
    if micro_batch is not None:
        batch = owner // micro_batch
        weights /= torch.bincount(batch)[batch].to(weights)
    inputs = {path: room(d_in) for path, (_, d_in) in shapes.items()}
    return Answers(owner, room(), weights, inputs, {path: room(d_out) for path, (d_out, _) in shapes.items()})


def _read_batch(
    lm: LM,
    aligned: forward.Aligned,
    at: Sequence[tuple[int, int]],
    token: Int[Tensor, " m"],
    place: Int[Tensor, " m"],
    found: Answers,
) -> None:
    """Run some rows forwards and backwards, and write what is read at the answers to its places in `found`."""
    rows, columns = (torch.tensor(side, device=lm.device) for side in zip(*at, strict=True))
    modules = {path: lm.module(path) for path in found.inputs}
    zeros: dict[str, Tensor] = {}

    def tapped(path: str) -> Callable[[Tensor], Tensor]:
        def change(states: Tensor) -> Tensor:
            where = rows.to(states.device), columns.to(states.device)
            zeros[path] = states.new_zeros(len(at), states.shape[-1], requires_grad=True)
            whole = hooks.unflattened(states, len(aligned))
            return whole.index_put(where, zeros[path], accumulate=True).view_as(states)

        return change

    scale = loss_scale(lm)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        seen = stack.enter_context(hooks.record(modules, "input"))
        for path, module in modules.items():
            stack.enter_context(hooks.rewritten(module, tapped(path)))
        stack.enter_context(forward.gathered_head(lm, rows, columns))
        logits = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits[0].to(found.losses.dtype)
        losses = F.cross_entropy(logits, token.to(logits.device), reduction="none")
        total = scale * (losses * found.weights[place].to(losses)).sum()
        slopes = torch.autograd.grad(total, [zeros[path] for path in modules])
    found.losses[place] = losses.detach().to(found.losses)
    for path, slope in zip(modules, slopes, strict=True):
        states = hooks.unflattened(seen[path].detach(), len(aligned))
        found.inputs[path][place] = states[rows.to(states.device), columns.to(states.device)].to(found.losses)
        found.gradients[path][place] = slope.to(found.losses) / scale
