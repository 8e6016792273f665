"""Reading single tensors' bytes out of a checkpoint's safetensors, without loading the rest.

Format: 8 bytes (little-endian) with the length of a JSON header, the header (per tensor its dtype, shape and the
[begin, end) offsets behind the header), then the bytes. Sharded checkpoints name the file of each tensor in
`model.safetensors.index.json`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Checkpoint", "checkpoint_of"]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of a folder's safetensors files, found by their headers; an unreadable file counts as absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._places: dict[str, _Place] = {}
        for file in _files(self.folder):
            try:
                self._places |= _header(file)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue

    def sha256(self, path: str, like: Tensor | None) -> str | None:
        """SHA-256 of the checkpoint's bytes of the weight of module `path`; None where it is not the source.

        With `like`, the weight in memory, the bytes must hold its values in another dtype or in the same one.
        """
        place = self._find(f"{path}.weight")
        if place is None:
            return None
        try:
            with open(place.file, "rb") as stream:
                stream.seek(place.begin)
                data = bytearray(stream.read(place.end - place.begin))
            if like is not None and not _holds(place, data, like):
                return None
        except (OSError, RuntimeError):
            return None
        return hashlib.sha256(data).hexdigest()

    def _find(self, name: str) -> _Place | None:
        """The tensor of a parameter; checkpoints of the bare decoder leave the first parts of its name out."""
        if name in self._places:
            return self._places[name]
        found = [key for key in self._places if name.endswith(f".{key}") or key.endswith(f".{name}")]
        return self._places[found[0]] if len(found) == 1 else None


def checkpoint_of(model: nn.Module, folder: str | Path | None = None) -> Checkpoint | None:
    """The checkpoint a model was read from: `folder`, else what the model's configuration names, on this machine."""
    if folder is not None:
        return Checkpoint(folder)
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if not name or not isinstance(name, str):
        return None
    if Path(name).is_dir():
        return Checkpoint(name)
    snapshot = _cached_snapshot(name, getattr(config, "_commit_hash", None))
    return Checkpoint(snapshot) if snapshot else None


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache; never asks the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:  # a name that no hub id can have, such as a folder that is gone
        return None
    return Path(file).parent if isinstance(file, str) else None


def _files(folder: Path) -> list[Path]:
    index, single = folder / _INDEX, folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return []
        # a name that leads out of the folder is none of this checkpoint's
        return [folder / name for name in sorted(names) if Path(name).name == name and (folder / name).is_file()]
    return sorted(folder.glob("*.safetensors"))


def _header(file: Path) -> dict[str, _Place]:
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError("the header is too long")
        header: dict[str, Any] = json.loads(stream.read(length))
    places = {}
    for name, item in header.items():
        if name != "__metadata__":
            begin, end = item["data_offsets"]
            places[name] = _Place(file, item["dtype"], tuple(item["shape"]), 8 + length + begin, 8 + length + end)
    return places


def _holds(place: _Place, data: bytearray, weight: Tensor) -> bool:
    """Whether the stored values, cast to the weight's dtype, are the weight's."""
    if place.dtype not in _DTYPES or place.shape != tuple(weight.shape):
        return False
    stored = torch.frombuffer(data, dtype=_DTYPES[place.dtype]).view(place.shape)
    return torch.equal(stored.to(weight.dtype), weight.detach().cpu())
