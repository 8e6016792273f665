"""In which precision, and by which kernels, a forward runs whose gradient is wanted."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from retcon.lm import LM

__all__ = ["Precision", "autocast", "kernels", "loss_scale", "mixed"]

Precision = Literal["float32", "bfloat16"]
"""Dtype of matrix products; sums stay fp32 or better."""


def mixed(lm: LM, precision: Precision) -> bool:
    """Whether products run in another dtype than the model's: bfloat16 was asked for, and the model is fp32."""
    return precision == "bfloat16" and lm.dtype == torch.float32


def autocast(lm: LM, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is asked for and the model is fp32."""
    return torch.autocast(lm.device.type, torch.bfloat16) if mixed(lm, precision) else nullcontext()


def loss_scale(lm: LM) -> float:
    """What a loss is multiplied by, and its gradient divided by: in fp16 small gradients would be zero."""
    return 1024.0 if lm.dtype == torch.float16 else 1.0


def kernels(lm: LM) -> AbstractContextManager[object]:
    """On a CPU, attention by plain products: the flash kernel's backward costs more, most of all in bfloat16."""
    return sdpa_kernel(SDPBackend.MATH) if lm.device.type == "cpu" else nullcontext()
