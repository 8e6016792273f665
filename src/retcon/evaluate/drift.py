"""How far an edit moves what the model is about to say: the divergence of whole distributions, one token a prompt."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, patch, progress
from retcon.lm import LM
from retcon.patch import Patch

__all__ = ["divergence", "drift"]

_BATCH_TOKENS = 1024
_BATCH_BYTES = 64 * 2**20
"""Of one model's distributions in fp32; two are held at a time, and none is kept."""


def drift(lm: LM, change: Patch, prompts: Sequence[Sequence[int]], *, batch_tokens: int = _BATCH_TOKENS) -> list[float]:
    """KL(unedited || edited) of the next token at each prompt, in nats.

    Both models run a batch before the next begins, so that memory is bounded whatever the number of prompts.

    Args:
        lm: the unedited model; patches that are on count as part of it.
        change: the patch that makes it the edited one.
        prompts: ids, none empty.
        batch_tokens: tokens of one forward, padding included.

    Raises:
        PatchError: the patch does not fit the model.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    vocabulary = int(lm.model.get_output_embeddings().weight.shape[0])
    most = max(1, _BATCH_BYTES // (4 * vocabulary))
    lengths = [max(len(prompt), -(-batch_tokens // most)) for prompt in prompts]
    found = [0.0] * len(prompts)
    checked = True  # once is enough
    with lm.inference(), progress.task("comparing distributions", len(prompts)) as advance:
        for batch in forward.batches(order, lengths, batch_tokens):
            rows = forward.align([prompts[i] for i in batch], [len(prompts[i]) for i in batch], lm.device)
            before = _next(lm, rows)
            with change.on(lm.model, check=checked):
                after = _next(lm, rows)
            checked = False
            for i, value in zip(batch, divergence(before, after).tolist(), strict=True):
                found[i] = value
            advance(len(batch))
    return found


def divergence(before: Float[Tensor, "n vocabulary"], after: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """sum_v p(v) (log p(v) - log q(v)) of log probabilities log p = `before` and log q = `after`; never below 0.

    >>> one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> round(float(divergence(one, other)), 4), float(divergence(one, one))
    (0.1438, 0.0)
    """
    shares = before.exp()
    terms = torch.where(shares > 0, shares * (before - after), 0.0)  # a token of probability 0 counts for nothing
    return terms.sum(-1).clamp_min(0)


def _next(lm: LM, rows: forward.Aligned) -> Float[Tensor, "n vocabulary"]:
    """Log probabilities of the token after each row."""
    lines = torch.arange(len(rows), device=lm.device)
    with patch.prompts(lm.model, rows.split - 1), forward.gathered_head(lm, lines, lines * 0 + rows.width - 1):
        logits: Tensor = forward.call(lm, rows.ids, rows.mask, rows.positions).logits[0]
    return logits.float().log_softmax(-1)
