"""A patch as a LoRA adapter that PEFT, transformers and inference servers load."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.card import README, Held, card, served_rank
from retcon.patch.entries import Entry, LowRank, refuse, svd
from retcon.patch.files import free_folder
from retcon.storage import new_folder, write_json

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["LoraExport", "export_lora"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class LoraExport:
    """What was written."""

    folder: Path
    rank: int
    """The one rank of all modules."""
    max_lora_rank: int | None
    """What vLLM needs as `--max-lora-rank`; None where it knows no rank so high."""
    errors: dict[str, float]
    """Share of each module's change that truncation lost (Frobenius), by module path; 0 where the export is exact."""


def export_lora(
    patch: "Patch", folder: str | Path, *, base_name: str | None = None, rank: int | None = None
) -> LoraExport:
    """Write a PEFT adapter: B A = delta for each module, alpha = r, so that the scale is 1 wherever it is loaded.

    Thin QR of U and V, SVD of the core, zeros dropped; all modules are padded with zeros to one rank, since servers
    read neither rank patterns nor per-module alphas.

    Args:
        patch: what to write.
        folder: a new folder, or that of an earlier adapter.
        base_name: hub id or folder of the base model, where the name in the patch is none.
        rank: the most factors a module may have; needed for dense changes, which lose what is beyond it.

    Raises:
        PatchError: the patch stands on another one, holds nothing, or what no adapter can express.
    """
    conv1d = _check(patch, rank)
    target = free_folder(folder, _CONFIG)
    factors, errors = {}, {}
    for path, entry in patch.entries.items():
        factors[path], errors[path] = _factors(entry, rank)
    r = max((a.shape[0] for a, _ in factors.values()), default=0)
    if r == 0:
        raise PatchError("the patch changes nothing, so there is no adapter to write")
    tensors: dict[str, Tensor] = {}
    for path, (a, b) in factors.items():
        pad = r - a.shape[0]
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, pad)).contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.nn.functional.pad(b, (0, pad)).contiguous()
    base = base_name or patch.base.model
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "revision": patch.base.revision,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
        "target_modules": list(factors),
    }
    export = LoraExport(target, r, served_rank(r), errors)
    held = Held(kind="adapter", rank=r, lost=max(errors.values()), base=base)
    with new_folder(target) as new:
        save_file(tensors, new / _WEIGHTS, metadata={"format": "pt"})
        write_json(new / _CONFIG, config)
        (new / README).write_text(card(patch, held), encoding="utf-8")
    return export


def _check(patch: "Patch", rank: int | None) -> bool:
    """Whether the projections are Conv1D; PatchError where no adapter can express the patch."""
    if patch.parent is not None:
        raise PatchError(f"patch {patch.id} stands on patch {patch.parent}; export the sum of both")
    refuse(patch.entries, "exported as a LoRA")
    if rank is not None and rank < 1:
        raise PatchError(f"a LoRA has at least rank 1, not {rank}")
    for path, entry in patch.entries.items():
        if rank is None and not isinstance(entry, LowRank):
            raise PatchError(
                f"{path} has a {entry.kind} change, which no LoRA holds exactly; give rank= to truncate it"
            )
    stored = {patch.base.weights[path].transposed for path in patch.entries if path in patch.base.weights}
    if len(stored) > 1:
        raise PatchError("the patch changes Linear and Conv1D modules, which one LoRA cannot; split it by module kind")
    return stored == {True}


def _factors(entry: Entry, rank: int | None) -> tuple[tuple[Tensor, Tensor], float]:
    """A (k, d_in) and B (d_out, k) in fp32 with singular values split evenly; the share of the change cut off."""
    left, values, right = svd(entry)
    kept = len(values) if rank is None else min(rank, len(values))
    total = float(values.norm())
    lost = float(values[kept:].norm()) / total if total > 0 else 0.0
    root = values[:kept].sqrt()
    return ((right[:, :kept] * root).T.float(), (left[:, :kept] * root).float()), lost
