"""Where a shift acts: modules, the first block that runs, and a site's parts as one tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import UnsupportedModel
from retcon.lm import LM
from retcon.values.config import SearchConfig

__all__ = ["first_block", "joined", "no_shift", "parted", "site_modules"]


def site_modules(lm: LM, config: SearchConfig) -> tuple[str, ...]:
    """Paths of the modules whose outputs are shifted, one a part, in the order they run.

    Raises:
        UnsupportedModel: a block of this family has no attention output projection.
    """
    layer = config.layer
    if config.site == "layer_out":
        return (lm.arch.blocks[layer],)
    if config.site == "module_out":
        return (lm.arch.mlp_out[layer],)
    if not any(lm.arch.attn_out[layer : layer + 1]):
        raise UnsupportedModel(
            f"{lm.arch.blocks[layer]} ({lm.arch.family}) has no attention output projection to shift; "
            "use a method that shifts the block's output, such as memit"
        )
    return lm.arch.attn_out[layer], lm.arch.mlp_out[layer]


def first_block(config: SearchConfig) -> int:
    """The first block that runs in the fast path."""
    return config.layer + 1 if config.site == "layer_out" else config.layer


def joined(parts: Sequence[Float[Tensor, "rows d"]]) -> Float[Tensor, "rows *parts d"]:
    """The parts of a site as one tensor; a single part gets no axis of its own."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts), 1)


def parted(shift: Float[Tensor, "rows *parts d"]) -> tuple[Float[Tensor, "rows d"], ...]:
    """The inverse of `joined`."""
    return (shift,) if shift.ndim == 2 else shift.unbind(1)


def no_shift(lm: LM, config: SearchConfig, rows: int) -> Float[Tensor, "rows *parts d"]:
    """Shifts of zero for so many rows."""
    return joined([torch.zeros(rows, lm.arch.d_model, device=lm.device)] * len(site_modules(lm, config)))
