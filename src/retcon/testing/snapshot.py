"""Everything that a visitor might leave changed in a model, a tokenizer or the process, as comparable values."""

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retcon import patch
from retcon.storage import digest

__all__ = ["changed", "snapshot"]

Snapshot = dict[str, object]


def snapshot(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, written: bool = True) -> Snapshot:
    """The state of a model, its tokenizer and the process, by the names of its parts.

    Args:
        model: the model.
        tokenizer: the tokenizer.
        written: whether a weight that was written counts as changed even where it holds the same bits again, as it
            does after `merge` and `unmerge`.
    """
    parts = (_weights(model, written), _modules(model), _configuration(model), _tokenizer(tokenizer), _process())
    found: Snapshot = {"patches": tuple(item.id for item in patch.active(model))}
    for part in parts:
        found.update(part)
    return found


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """The names of all parts that differ, were lost or are new."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _weights(model: nn.Module, written: bool) -> Iterator[tuple[str, object]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        yield f"bits of {name}", (tensor.dtype, tensor.device, tuple(tensor.shape), _bits(tensor))
        yield f"gradient of {name}", (tensor.requires_grad, tensor.grad is None)
        if written:
            yield f"storage of {name}", (tensor.data_ptr(), tensor._version)


def _bits(tensor: Tensor) -> str:
    flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
    return digest(flat.numpy().data)


def _modules(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        where = name or "the model"
        yield f"mode of {where}", module.training
        yield f"attributes of {where}", sorted(module.__dict__)  # a replaced forward shows here
        hooks = {key: list(value) for key, value in module.__dict__.items() if "hooks" in key and value is not None}
        yield f"hooks of {where}", hooks


def _configuration(model: PreTrainedModel) -> Iterator[tuple[str, object]]:
    for name in ("config", "generation_config"):
        value: Any = getattr(model, name, None)
        yield name, None if value is None else json.dumps(value.to_dict(), sort_keys=True, default=str)
    yield "attention", getattr(model.config, "_attn_implementation", None)


def _tokenizer(tokenizer: Any) -> Iterator[tuple[str, object]]:
    for name in ("padding_side", "truncation_side", "special_tokens_map", "chat_template", "model_max_length"):
        yield f"tokenizer: {name}", str(getattr(tokenizer, name, None))
    yield "tokenizer: vocabulary", digest(sorted(tokenizer.get_vocab().items()))
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is not None:  # holds padding and truncation too
        yield "tokenizer: backend", digest(backend.to_str())


def _process() -> Iterator[tuple[str, object]]:
    yield "random state of torch", _bits(torch.get_rng_state())
    yield "random state of Python", random.getstate()
    yield "random state of numpy", digest(str(np.random.get_state()))
    yield "gradients", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "default dtype", torch.get_default_dtype()
    yield "threads", torch.get_num_threads()
    yield "TF32", (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
