"""A shared start of the target search [our reconstruction, for ECE]: a cluster takes its first steps as one.

With J_i the search's loss of member i, one shift delta_g goes t_0 steps down the mean loss,

    delta_g <- delta_g - lr * mean_i |h0_i| * m / |m|,   m <- momentum * m + g / |g|,   g = d/d delta_g  mean_i J_i

and is kept within `clamp` * mean_i |h0_i|. Then each member goes on alone from delta_g, with the evaluations that are
left. That pays where one shift serves several facts; members that want different answers have little to share.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from retcon import targets, values
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.targets import Store
from retcon.values import Found, SearchConfig, fast_path, rows_of
from retcon.values.clean import prepare
from retcon.values.loss import evaluate
from retcon.values.precision import half_weights

__all__ = ["common_shift", "find"]

_CHUNK_TOKENS = 256
"""Tokens run in one forward, as in the search."""


def find(
    lm: LM,
    edits: Sequence[Edit],
    config: SearchConfig,
    texts: Sequence[str],
    stores: Sequence[Store],
    first: int,
) -> tuple[Found, int]:
    """Targets of a cluster's members from a shared start, and how many of them were found in a store.

    Args:
        lm: the model, with any patch already on.
        edits: the members; each one's target depends on all of them.
        config: options of the search; its `steps` count the shared ones too.
        texts: texts put before each prompt.
        stores: where to look first; all of them are written.
        first: t_0, the shared steps.
    """

    def searched(_: Sequence[int], advance: Callable[[float], None]) -> Found:
        shift = common_shift(lm, edits, config, texts, first)
        alone = replace(config, steps=config.steps - first)
        found = values.search(lm, edits, alone, texts, start=lambda base: shift.expand_as(base), advance=advance)
        return replace(found, evaluations=found.evaluations + first)

    return targets.find_in_order(
        lm, edits, config, texts, stores, searched, lambda *_: None, block=len(edits), options=["warm", first]
    )


def common_shift(
    lm: LM, edits: Sequence[Edit], config: SearchConfig, texts: Sequence[str], steps: int
) -> Float[Tensor, " d"]:
    """One shift for all members, after so many steps down their mean loss."""
    rows = [row for i, edit in enumerate(edits) for row in rows_of(lm, edit, texts, i, essence=config.kl > 0)]
    with frozen(lm.model):
        base, chunks = prepare(lm, rows, len(edits), config, _CHUNK_TOKENS, fast_path(lm, config))
        norms = base.norm(dim=1)  # (n,)
        decay = config.weight_decay * norms.square().reciprocal().mean()
        shift, memory = base.new_zeros(base.shape[1]), base.new_zeros(base.shape[1])
        with half_weights(lm, config):
            for _ in range(steps):
                seen = evaluate(lm, chunks, shift.expand_as(base).contiguous(), config)
                slope = seen.gradient.mean(0) + decay * F.normalize(shift, dim=0)
                memory = config.momentum * memory + F.normalize(slope, dim=0)
                shift = shift - config.lr * norms.mean() * F.normalize(memory, dim=0)
                shift = shift * (config.clamp * norms.mean() / shift.norm().clamp_min(1e-30)).clamp_max(1.0)
    return shift
