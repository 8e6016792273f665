"""What teacher forcing tells beyond a token's own likelihood: its rank, and how the model's distribution spreads."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, patch, progress
from retcon.lm import LM

__all__ = ["Detail", "details"]

_BATCH_TOKENS = 512  # with padding; every token of an answer has a row of logits


class Detail(NamedTuple):
    """Of each token of a continuation, given the prompt and the tokens before it."""

    ranks: list[float]
    """1 is the likeliest; tokens of equal likelihood share the best of their ranks."""
    means: list[float]
    """sum_v p(v) log p(v): the mean of log p under the model's own distribution, in nats."""
    variances: list[float]
    """sum_v p(v) (log p(v) - mean)^2."""


def details(
    lm: LM,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_tokens: int = _BATCH_TOKENS,
    label: str = "ranking",
) -> list[Detail]:
    """Read the ranks and moments of each continuation, in one forward a batch, in fp32.

    Args:
        lm: the model, with any patch already on.
        pairs: prompt and continuation as ids, neither empty.
        batch_tokens: tokens of one forward, padding included.
        label: what the progress is called.
    """
    rows = [[*prompt, *continuation[:-1]] for prompt, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (len(rows[i]), len(pairs[i][0]), i))
    found: dict[int, Detail] = {}
    with lm.inference(), progress.task(label, len(pairs)) as advance:
        for batch in forward.batches(order, [len(row) for row in rows], batch_tokens):
            aligned = forward.align([rows[i] for i in batch], [len(pairs[i][0]) for i in batch], lm.device)
            at = [(r, aligned.split - 1 + t) for r, i in enumerate(batch) for t in range(len(pairs[i][1]))]
            lines, columns = (torch.tensor(side, device=lm.device) for side in zip(*at, strict=True))
            with patch.prompts(lm.model, aligned.split - 1), forward.gathered_head(lm, lines, columns):
                logits: Tensor = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits[0]
            start = 0
            for i in batch:
                continuation = pairs[i][1]
                found[i] = _detail(logits[start : start + len(continuation)].float(), continuation)
                start += len(continuation)
            advance(len(batch))
    return [found[i] for i in range(len(pairs))]


def _detail(logits: Float[Tensor, "n vocabulary"], wanted: Sequence[int]) -> Detail:
    own = logits.gather(1, torch.tensor(wanted, device=logits.device).unsqueeze(1))
    logprobs = logits.log_softmax(-1)
    shares = logprobs.exp()
    means = (shares * logprobs).nan_to_num().sum(-1)  # a token of probability 0 counts for nothing
    spread = (shares * (logprobs - means.unsqueeze(1)).square()).nan_to_num().sum(-1)
    ranks = (logits > own).sum(-1) + 1
    return Detail(ranks.double().tolist(), means.double().tolist(), spread.double().tolist())
