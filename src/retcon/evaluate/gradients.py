"""How steeply the loss of an answer rises at the weights of a model: what the attack by gradient norms looks at."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import forward, hooks, patch, progress
from retcon.arch import frozen
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.metrics.membership import gradient_score
from retcon.precision import kernels, loss_scale

__all__ = ["NoGradient", "gradient_scores"]


class NoGradient(RetconError):  # noqa: N818 - it names a state of the model, not a failure of ours
    """The loss of an answer has no gradient at the weights of this model, or none with what is on it."""


def gradient_scores(
    lm: LM, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, label: str = "gradients"
) -> list[float]:
    """The mean, over the weight tensors of a model, of the l2 norm of the gradient of a continuation's loss.

    The loss is the mean of -log p, in nats, over the continuation's tokens given the prompt. Each pair is a forward and
    a backward of its own, with the patches that are on; what belongs to these counts as no weight, and neither do
    quantised weights. A weight that the loss does not hang on counts as 0. Norms are fp32, or fp64 where the weight is.
    Gradients take as much memory as the weights; none is left behind, and all flags are put back.

    Args:
        lm: the model, with any patch already on.
        pairs: prompt and continuation as ids, neither empty.
        label: what the progress is called.

    Returns:
        A score a pair; NaN where it is not finite.

    Raises:
        NoGradient: no weight is a floating-point number, or something on the way lets no gradient through.
    """
    if not pairs:
        return []
    weights = [weight for weight in lm.model.parameters() if weight.is_floating_point()]
    if not weights:
        raise NoGradient("no weight of this model is a floating-point number; judge the model that it was made of")
    changed = {path: entry.kind for item in patch.active(lm.model) for path, entry in item.entries.items() if path}
    found = []
    with ExitStack() as stack, frozen(lm.model), progress.task(label, len(pairs)) as advance:
        for path, kind in changed.items():
            stack.enter_context(hooks.rewritten(lm.module(path), partial(_open, f"{kind} at {path}")))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                for weight in weights:
                    weight.requires_grad_(True)
                for prompt, continuation in pairs:
                    found.append(_score(lm, prompt, continuation, weights))
                    advance(1)
        except RuntimeError as error:  # torch knows no derivative of something on the way, or has no room for it
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise NoGradient(f"no gradient of an answer can be taken here ({reason}); leave the figure out") from error
    return found


def _open(what: str, states: Tensor) -> Tensor:
    """The states that a changed module hands on, if a gradient comes back through them."""
    if torch.is_grad_enabled() and not states.requires_grad:  # what a context asks meanwhile needs none
        raise NoGradient(f"the {what} lets no gradient through; leave the figure out")
    return states


def _score(lm: LM, prompt: Sequence[int], continuation: Sequence[int], weights: Sequence[Tensor]) -> float:
    """The score of one pair. In fp16 the loss is scaled up first, and taken as it is where that was too much."""
    value = math.nan
    for scale in dict.fromkeys((loss_scale(lm), 1.0)):
        value = gradient_score(_norms(lm, prompt, continuation, weights, scale)) or 0.0
        if math.isfinite(value):
            return value
    return math.nan


def _norms(
    lm: LM, prompt: Sequence[int], continuation: Sequence[int], weights: Sequence[Tensor], scale: float
) -> list[float]:
    """The l2 norm of the gradient at each weight."""
    rows = forward.align([[*prompt, *continuation[:-1]]], [0], lm.device)
    columns = torch.arange(len(prompt) - 1, rows.width, device=lm.device)
    last = len(prompt) - 1
    with patch.prompts(lm.model, last), forward.gathered_head(lm, torch.zeros_like(columns), columns), kernels(lm):
        logits: Tensor = forward.call(lm, rows.ids, rows.mask, rows.positions).logits[0]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(wide, torch.tensor(continuation, device=wide.device))
        slopes = torch.autograd.grad(scale * loss, weights, allow_unused=True)
    norms = [
        wide.new_zeros(())
        if slope is None
        else torch.linalg.vector_norm(slope, dtype=torch.promote_types(slope.dtype, torch.float32)).to(wide)
        for slope in slopes
    ]
    return [value / scale for value in torch.stack(norms).tolist()]
