"""Which model a patch was made for, known by hashes of the weights it touches."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from retcon.errors import PatchError, RetconWarning
from retcon.patch.live import original
from retcon.patch.source import Checkpoint, checkpoint_of

__all__ = ["Base", "WeightHash", "describe_base", "model_name", "projection", "readable_weight"]

_HASHED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PLAIN = (*_HASHED.values(), torch.float64)
_hashes: Any = WeakIdKeyDictionary()  # weight -> (stamp, {dtype name: hash})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHash:
    """What is known of one touched weight; hashes are SHA-256, null where the weight cannot be read so."""

    shape: tuple[int, int]
    """(d_out, d_in)."""
    transposed: bool
    """Whether it is stored (d_in, d_out), as `Conv1D` does."""
    dtype: str
    """The dtype in memory when the patch was made."""
    float32: str | None = None
    """Hash of the weight cast to float32."""
    bfloat16: str | None = None
    float16: str | None = None
    source: str | None = None
    """Hash of the tensor's bytes in the checkpoint that it was read from."""

    def cast(self, dtype: str) -> str | None:
        """The hash of the weight in a dtype; float64 is told by its cast to float32."""
        return {"float32": self.float32, "bfloat16": self.bfloat16, "float16": self.float16}.get(_hashed_as(dtype))

    def agrees(self, other: "WeightHash") -> bool:
        """Whether both can be the same weight, in whatever dtype."""
        if self.shape != other.shape:
            return False
        if self.dtype == other.dtype and self.cast(self.dtype) is not None:
            return self.cast(self.dtype) == other.cast(self.dtype)
        pairs = [(self.cast(name), other.cast(name)) for name in (self.dtype, other.dtype)]
        pairs = [pair for pair in (*pairs, (self.source, other.source)) if None not in pair]
        return not pairs or any(mine == theirs for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a patch was made for."""

    model: str = ""
    """What the user called it: a hub id, a folder, an alias."""
    revision: str | None = None
    weights: dict[str, WeightHash] = field(default_factory=dict)
    """The touched weights, by module path."""

    def check(self, model: nn.Module, paths: Iterable[str]) -> None:
        """Refuse a model whose touched weights are not this base's; warn where only dtype or quantisation differ.

        Raises:
            PatchError: the model is another one, or has been changed.
        """
        cast = [path for path in paths if not self._same(model, path)]
        if cast:
            here, there = _dtype_name(model, cast[0]), self.weights[cast[0]].dtype
            warnings.warn(
                f"the patch was made on {self.title} in {there} and this model holds it in {here}; "
                "it applies, but evaluate it again",
                RetconWarning,
                stacklevel=5,
            )

    def _same(self, model: nn.Module, path: str) -> bool:
        """Whether a weight is the very one (True) or the same of the checkpoint in another dtype (False)."""
        made_on = self.weights.get(path)
        if made_on is None:
            raise PatchError(f"the patch's base does not tell the weight of {path}; make it with describe_base")
        _, shape, _ = projection(model, path)
        where = path or "the input embedding"
        foreign = f"the patch was made for {self.title}; {where} is another weight in {_title(model)}"
        if shape != made_on.shape:
            raise PatchError(foreign)
        weight, here = readable_weight(model, path), _dtype_name(model, path)
        if weight is not None:
            if here == made_on.dtype and made_on.cast(here) is not None:
                if _sha256(weight, here) == made_on.cast(here):
                    return True
                raise PatchError(foreign)
            for dtype in (here, made_on.dtype):  # the finer of the two, cast to the coarser, is the coarser
                if made_on.cast(dtype) is not None and _sha256(weight, dtype) == made_on.cast(dtype):
                    return False
        # Quantised weights cannot be hashed, and two roundings need not agree: there the checkpoint on disk tells.
        checkpoint = checkpoint_of(model)
        if made_on.source is not None and checkpoint is not None and checkpoint.sha256(path, weight) == made_on.source:
            return here == made_on.dtype
        if weight is None and (checkpoint is None or made_on.source is None) and self.model == model_name(model) != "":
            return False  # nothing is left to compare but the name
        raise PatchError(foreign)

    @property
    def title(self) -> str:
        """The model's name and revision, for sentences."""
        return (self.model or "an unnamed model") + (f" (revision {self.revision[:12]})" if self.revision else "")

    def join(self, other: "Base") -> "Base":
        """The base of two patches that are put together.

        Raises:
            PatchError: they were made for different models.
        """
        if not self.weights or not other.weights:
            return self if self.weights else other
        shared = self.weights.keys() & other.weights.keys()
        for path in sorted(shared):
            if not self.weights[path].agrees(other.weights[path]):
                both = f"{self.title} and {other.title}"
                raise PatchError(f"the patches were made for different models ({both}): {path} is not the same weight")
        if not shared and self.model != other.model:
            warnings.warn(
                f"the patches were made on {self.title} and {other.title} and touch no weight in common; "
                "make sure that both are the same model",
                RetconWarning,
                stacklevel=4,
            )
        return Base(self.model, self.revision, {**other.weights, **self.weights})

    def to_dict(self) -> dict[str, Any]:
        """The base as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Base":
        """The base of what `to_dict` gave."""
        weights = {
            path: WeightHash(**{**item, "shape": (int(item["shape"][0]), int(item["shape"][1]))})
            for path, item in value["weights"].items()
        }
        return cls(value["model"], value["revision"], weights)


def describe_base(
    model: nn.Module,
    paths: Iterable[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    source: str | Path | None = None,
) -> Base:
    """The base of a patch on the modules at `paths`; of merged weights the originals are described.

    Args:
        model: the model with its weights.
        paths: full module paths of the touched projections.
        name: what to call the model; by default what its configuration does.
        revision: of the checkpoint.
        source: folder of the checkpoint's safetensors, by default where the configuration says, if it is on this disk.

    Raises:
        PatchError: no module is there, or it is no projection.
    """
    checkpoint = checkpoint_of(model, source)
    weights = {path: _describe(model, path, checkpoint) for path in paths}
    return Base(name or model_name(model), revision or getattr(model_config(model), "_commit_hash", None), weights)


def model_config(model: nn.Module) -> Any:
    """A model's configuration, None where it has none."""
    return getattr(model, "config", None)


def model_name(model: nn.Module) -> str:
    """What a model's configuration calls it; empty where it has no name."""
    return str(getattr(model_config(model), "_name_or_path", None) or "")


def _title(model: nn.Module) -> str:
    return model_name(model) or f"this {type(model).__name__}"


def projection(model: nn.Module, path: str) -> tuple[nn.Module, tuple[int, int], bool]:
    """The projection at a module path, its (d_out, d_in), and whether its weight is stored (d_in, d_out).

    The model's root, where contexts stand, is known by its input embeddings (vocabulary, d).

    Raises:
        PatchError: no module is there, or it is no Linear and no Conv1D.
    """
    if path == "":
        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
        if isinstance(embeddings, nn.Module) and isinstance(embeddings.weight, Tensor):
            vocabulary, d_model = embeddings.weight.shape
            return embeddings, (vocabulary, d_model), False
        raise PatchError(f"{_title(model)} has no input embeddings; put the patch on the causal language model")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise PatchError(f"{_title(model)} has no module {path}; the patch was made for another model") from None
    if isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int):
        return module, (int(module.out_features), int(module.in_features)), False  # type: ignore[arg-type]
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return module, (weight.shape[1], weight.shape[0]), True
    raise PatchError(f"{path} is a {type(module).__name__}; a patch changes Linear and Conv1D projections")


def readable_weight(model: nn.Module, path: str) -> Tensor | None:
    """The weight at a path as it was before any merge; None where it is quantised or not in memory."""
    weight = original(model, path)
    if weight is None:
        weight = getattr(projection(model, path)[0], "weight", None)
    plain = isinstance(weight, Tensor) and weight.dtype in _PLAIN and weight.ndim == 2 and not weight.is_meta
    return weight if plain and type(weight) in (Tensor, nn.Parameter) else None


def _describe(model: nn.Module, path: str, checkpoint: Checkpoint | None) -> WeightHash:
    _, shape, transposed = projection(model, path)
    weight = readable_weight(model, path)
    return WeightHash(
        shape=shape,
        transposed=transposed,
        dtype=_dtype_name(model, path),
        source=checkpoint.sha256(path, weight) if checkpoint is not None else None,
        **({} if weight is None else {name: _sha256(weight, name) for name in _HASHED}),
    )


def _hashed_as(dtype: str) -> str:
    return "float32" if dtype == "float64" else dtype


def _dtype_name(model: nn.Module, path: str) -> str:
    weight = getattr(projection(model, path)[0], "weight", None)
    return str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else "packed form"


def _sha256(weight: Tensor, dtype: str) -> str | None:
    """Hash of a weight's bytes in a dtype, as stored; remembered until the weight changes. None for other dtypes."""
    name = _hashed_as(dtype)
    if name not in _HASHED:
        return None
    stamp = _stamp(weight)
    known, hashes = _hashes.get(weight, (None, {}))
    if known != stamp:
        hashes = {}
        _hashes[weight] = (stamp, hashes)
    if name not in hashes:
        cast = weight.detach().to(_HASHED[name]).cpu().contiguous()
        hashes[name] = hashlib.sha256(cast.view(torch.uint8).numpy().data).hexdigest()
    return str(hashes[name])


def _stamp(weight: Tensor) -> tuple[object, ...]:
    """Differs once a weight has been written, also through `weight.data`, which leaves its version as it was.

    The XOR of all bits sees the change of any one value, but not an even number of sign flips or a new order; the
    weighted sum sees those.
    """
    flat = weight.detach()
    left, right = (torch.linspace(1, 2, n, device=flat.device).to(flat.dtype) for n in flat.shape)
    bits = torch.hash_tensor(flat).item() if hasattr(torch, "hash_tensor") else None  # from torch 2.9
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, tuple(weight.shape), bits, (left @ (flat @ right)).item()
