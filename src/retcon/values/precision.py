"""Half-precision products around fp32 sums: what the search runs in bfloat16, and what it keeps so."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from retcon.lm import LM
from retcon.precision import mixed
from retcon.values.config import SearchConfig
from retcon.values.sites import first_block

__all__ = ["half_weights", "held"]


@contextmanager
def half_weights(lm: LM, config: SearchConfig) -> Iterator[None]:
    """Keep bfloat16 copies of the weights that the descent runs; autocast would make them anew in every forward."""
    swapped: list[tuple[nn.Module, nn.Parameter]] = []
    if mixed(lm, config.precision):
        above = [lm.block(layer) for layer in range(first_block(config), lm.arch.n_layers)]
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


def held(lm: LM, config: SearchConfig, states: Tensor) -> Tensor:
    """Keys or values as they are kept: in bfloat16 where every product of them will be."""
    return states.to(torch.bfloat16) if mixed(lm, config.precision) else states
