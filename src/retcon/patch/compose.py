"""What the parts of two patches are together."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retcon.errors import RetconWarning
from retcon.patch.chain import combine
from retcon.patch.entries import Entry

__all__ = ["joined_info", "joined_state", "together"]


def together(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries that do what both do; what is new comes to the CPU in fp32."""
    entries = dict(first)
    for path, entry in second.items():
        placed = entry.to("cpu", torch.float32)
        entries[path] = combine(entries[path], placed) if path in entries else placed
    return entries


def joined_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What two patches remember together; nothing, with a warning, where no rule tells how to join it."""
    joined = {**first, **second}
    for name in first.keys() & second.keys():
        if name.startswith("sum.") and first[name].shape == second[name].shape:
            joined[name] = first[name] + second[name]
        elif name.startswith("cat.") and first[name].shape[:-1] == second[name].shape[:-1]:
            joined[name] = torch.cat([first[name], second[name]], -1)
        else:
            warnings.warn(
                f"both patches remember {name!r} and cannot share it; the sum remembers nothing, so going on from it "
                "no longer shields the earlier edits",
                RetconWarning,
                stacklevel=4,
            )
            return {}
    return joined


def joined_info(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Lists one after the other, numbers added, objects joined key by key; of the rest, the second's."""
    joined = {**first, **second}
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            joined[name] = joined_info(a, b)
        elif isinstance(a, list) and isinstance(b, list):
            joined[name] = [*a, *b]
        elif isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
            joined[name] = a + b
    return joined
