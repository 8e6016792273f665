"""Half-precision products around fp32 sums: what the search runs in bfloat16, and what it keeps so."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from retcon.lm import LM
from retcon.values.config import SearchConfig
from retcon.values.sites import first_block

__all__ = ["autocast", "half_weights", "held", "kernels"]


def _mixed(lm: LM, config: SearchConfig) -> bool:
    return config.precision == "bfloat16" and lm.dtype == torch.float32


def autocast(lm: LM, config: SearchConfig) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is asked for and the model is fp32."""
    return torch.autocast(lm.device.type, torch.bfloat16) if _mixed(lm, config) else nullcontext()


@contextmanager
def half_weights(lm: LM, config: SearchConfig) -> Iterator[None]:
    """Keep bfloat16 copies of the weights that the descent runs; autocast would make them anew in every forward."""
    swapped: list[tuple[nn.Module, nn.Parameter]] = []
    if _mixed(lm, config):
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
    return states.to(torch.bfloat16) if _mixed(lm, config) else states


def kernels(lm: LM) -> AbstractContextManager[object]:
    """On a CPU, attention by plain products: the flash kernel's backward costs more, most of all in bfloat16."""
    return sdpa_kernel(SDPBackend.MATH) if lm.device.type == "cpu" else nullcontext()
