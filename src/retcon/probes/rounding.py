"""Round-to-nearest quantisation of a weight, and a model run with its weights so rounded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retcon.errors import RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.methods.unlearning.base import linear_paths
from retcon.patch import Patch
from retcon.patch.base import projection

__all__ = ["quantised", "rounded"]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rounded(weight: Float[Tensor, "d_out d_in"], bits: int, group: int | None = None) -> Float[Tensor, "d_out d_in"]:
    """A weight as symmetric round-to-nearest quantisation leaves it.

        s = max |w| / (2^(bits-1) - 1) over an output row, or over each `group` of its inputs;   w -> s round(w / s)

    No value moves by more than s / 2, and rounding what is rounded changes nothing. Computed in fp64, so that this
    holds to the bit for a weight in fp32, and given back in the weight's dtype.

    Args:
        weight: (d_out, d_in), whatever the storage.
        bits: 2 or more.
        group: inputs that share a step; None for a whole row.

    Raises:
        RetconError: there are too few bits, or a group is empty.

    >>> rounded(torch.tensor([[1.0, -0.26, 0.1]]), 3)
    tensor([[ 1.0000, -0.3333,  0.0000]])
    """
    if bits < 2:
        raise RetconError(f"{bits} bits leave a weight no value but zero; give at least 2")
    if group is not None and group < 1:
        raise RetconError(f"a group of {group} inputs is none; give at least 1, or none for whole rows")
    d_out, d_in = weight.shape
    size = d_in if group is None else min(group, d_in)
    wide = torch.nn.functional.pad(weight.detach().double(), (0, -d_in % size))
    parts = wide.view(d_out, -1, size)  # (d_out, groups, size)
    step = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    found = ((parts / step).round() * step).view(d_out, -1)[:, :d_in]
    return found.to(weight.dtype).contiguous()


@contextmanager
def quantised(lm: LM, bits: int, group: int | None = None, *, merged: Patch | None = None) -> Iterator[None]:
    """Run the model inside the block with all linear weights of its blocks rounded; head and embeddings stay.

    The model's own weights are put aside, not written: they come back as they were.

    Args:
        lm: the model.
        bits: of a weight.
        group: inputs that share a step.
        merged: a patch that is written into the weights before they are rounded.

    Raises:
        UnsupportedModel: a weight is quantised already, or not in memory.
        PatchError: the patch is no change of weights.
    """
    rounds = linear_paths(lm, range(lm.arch.n_layers))
    added = {} if merged is None else merged.entries
    aside: dict[str, nn.Parameter] = {}
    try:
        for path in dict.fromkeys([*rounds, *added]):
            module, _, transposed = projection(lm.model, path)
            weight = getattr(module, "weight", None)
            if type(weight) is not nn.Parameter or weight.dtype not in _FLOATS or weight.is_meta:
                raise UnsupportedModel(f"the weight of {path} is quantised already or not in memory; load it in full")
            new = weight.detach().T if transposed else weight.detach()
            if path in added:
                work = torch.promote_types(weight.dtype, torch.float32)
                new = (new.to(work) + added[path].delta().to(new.device, work)).to(weight.dtype)
            new = rounded(new, bits, group) if path in rounds else new
            aside[path] = weight
            module.weight = nn.Parameter(
                (new.T if transposed else new).contiguous(), requires_grad=weight.requires_grad
            )
        yield
    finally:
        for path, weight in aside.items():
            projection(lm.model, path)[0].weight = weight
