"""A patch written into the weights, and taken out again bit for bit; a merged copy of the model on disk."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retcon.errors import PatchError, RetconWarning
from retcon.patch.base import projection
from retcon.patch.card import README, Held, card
from retcon.patch.entries import refuse
from retcon.patch.files import free_folder
from retcon.patch.live import Applied, applied, check_order
from retcon.storage import new_folder, write_json

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["MARK", "export_model", "merge", "unmerge"]

MARK = "retcon_patch.json"
"""The file of an exported model that tells which patch is in it."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def merge(patch: "Patch", model: nn.Module) -> dict[str, float]:
    """Write a patch into the weights, keep the originals; returns the share of each change that rounding loses.

    The share is ||(W' - W) - D|| / ||D|| (Frobenius) for the change D and the weights before and after, by module path.

    Raises:
        PatchError: a patch is on by hooks, the order is wrong, a weight is tied or quantised, or an entry is no change
            of a weight. Nothing is written.
    """
    refuse(patch.entries, "merged into the weights")
    on = [item.patch.id for item in applied(model) if not item.merged]
    if on:
        raise PatchError(f"patch {on[-1]} is on this model; leave its `with` block or detach it before you merge")
    check_order(model, patch)
    weights = {path: _writable(model, path) for path in patch.entries}
    item, lost = Applied(patch, merged=True), {}
    try:
        for path, weight in weights.items():
            item.originals[path] = before = weight.detach().clone()
            delta = patch.entries[path].delta()
            lost[path] = _add(weight, before, delta.T if projection(model, path)[2] else delta)
    except BaseException:
        _restore(item, weights)
        raise
    applied(model).append(item)
    half = [path for path, weight in weights.items() if weight.dtype in (torch.bfloat16, torch.float16)]
    if half:
        worst = max(half, key=lost.__getitem__)
        dtype = str(weights[worst].dtype).removeprefix("torch.")
        warnings.warn(
            f"merging into {dtype} loses {lost[worst]:.1%} of the change to rounding (Frobenius norm, {worst}); "
            "keep the model in float32, or use patch.on(model), which adds the change in float32",
            RetconWarning,
            stacklevel=3,
        )
    return lost


def unmerge(patch: "Patch", model: nn.Module) -> None:
    """Put back the weights that `merge` replaced, bit for bit.

    Raises:
        PatchError: the patch is not merged into this model, or another one came on top of it.
    """
    items = applied(model)
    index = next((i for i, item in enumerate(items) if item.merged and item.patch.id == patch.id), None)
    if index is None:
        raise PatchError(f"patch {patch.id} is not merged into this model; unmerge takes what merge put there")
    if index != len(items) - 1:
        raise PatchError(f"patch {items[-1].patch.id} came on top of patch {patch.id}; take it off first")
    item = items[index]
    _restore(item, {path: _writable(model, path) for path in item.originals})
    items.remove(item)


def export_model(patch: "Patch", model: Any, tokenizer: Any, folder: str | Path) -> dict[str, float]:
    """Write the merged model as a folder that plain transformers loads; the model in memory ends as it began.

    Returns the share of each change that rounding loses, as `merge` does.

    Raises:
        PatchError: as `merge`, or the folder holds something else.
    """
    refuse(patch.entries, "exported as a model of its own")
    target = free_folder(folder, MARK)
    kept = {name: getattr(model.config, name, None) for name in ("dtype", "architectures")}  # save_pretrained sets both
    lost = merge(patch, model)
    try:
        with new_folder(target) as new:
            model.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            mark = {"patch": patch.id, "base": patch.base.to_dict(), "lost": lost, "history": patch.steps()}
            write_json(new / MARK, mark)
            held = Held(kind="model", lost=max(lost.values(), default=0.0))
            (new / README).write_text(card(patch, held), encoding="utf-8")
    finally:
        unmerge(patch, model)
        for name, value in kept.items():
            setattr(model.config, name, value)
    return lost


def _writable(model: nn.Module, path: str) -> Tensor:
    """The weight parameter at a path.

    Raises:
        PatchError: it is quantised, not in memory, or shared with another module.
    """
    weight = getattr(projection(model, path)[0], "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.dtype in _FLOATS and not weight.is_meta
    if not plain or type(weight) is not nn.Parameter:
        raise PatchError(
            f"the weight of {path} is quantised or not in memory; use patch.on(model), which leaves it alone"
        )
    name = f"{path}.weight"
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if other != name and _overlap(parameter, weight):
            raise PatchError(f"{name} is tied to {other}, which would change too; use patch.on(model)")
    return weight


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two parameters share memory; a whole checkpoint may be one storage, so storages do not tell."""
    begin, end = second.data_ptr(), second.data_ptr() + second.nbytes
    return first.device == second.device and first.data_ptr() < end and begin < first.data_ptr() + first.nbytes


@torch.no_grad()
def _add(weight: Tensor, before: Tensor, delta: Tensor) -> float:
    """Write `before + delta` into a weight; returns the share of the change that rounding loses."""
    work = torch.promote_types(weight.dtype, torch.float32)
    change = delta.to(weight.device, work)
    weight.copy_(before.to(work) + change)
    size = change.norm()
    return float((weight.to(work) - before.to(work) - change).norm() / size) if size > 0 else 0.0


@torch.no_grad()
def _restore(item: Applied, weights: dict[str, Tensor]) -> None:
    for path, before in item.originals.items():
        weights[path].copy_(before)
