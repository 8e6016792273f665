"""A patch as a folder: `patch.safetensors` with the tensors, `manifest.json` with all the rest, for people to read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.base import Base
from retcon.patch.chain import Chain
from retcon.patch.codebook import Codebook
from retcon.patch.context import Context
from retcon.patch.entries import Dense, Entry, LowRank
from retcon.patch.gated import Gated
from retcon.patch.history import Step, jsonable
from retcon.storage import digest, file_sha256, new_folder, write_json

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["KINDS", "MANIFEST", "SCHEMA", "TENSORS", "free_folder", "load", "save"]

SCHEMA = 1
"""Version of the format; a reader refuses what is newer."""
MANIFEST = "manifest.json"
TENSORS = "patch.safetensors"
KINDS: dict[str, type[LowRank] | type[Dense] | type[Codebook] | type[Gated] | type[Context]] = {
    LowRank.kind: LowRank,
    Dense.kind: Dense,
    Codebook.kind: Codebook,
    Gated.kind: Gated,
    Context.kind: Context,
}
"""The entries that a file may hold, by their kind; and chains of them."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Weight(_Strict):
    shape: list[int]
    transposed: bool
    dtype: str
    float32: str | None
    bfloat16: str | None
    float16: str | None
    source: str | None


class _Base(_Strict):
    model: str
    revision: str | None
    weights: dict[str, _Weight]


class _Step(_Strict):
    id: str
    method: str
    config: dict[str, Any]
    edits: list[dict[str, Any]]
    parent: str | None
    seed: int | None
    versions: dict[str, Any]
    chat: bool
    bos: bool | None
    scale: float


class _Entry(_Strict):
    kind: str
    shape: list[int]
    rank: int
    settings: dict[str, Any] = {}
    """What is no tensor; absent where there is nothing."""


class _Tensors(_Strict):
    file: str
    bytes: int
    sha256: str


class _Manifest(_Strict):
    """`manifest.json`; `sha256` is the digest of all other fields."""

    schema_: int
    summary: str
    id: str
    parent: str | None
    contains: list[str]
    history: list[_Step]
    base: _Base
    entries: dict[str, _Entry]
    state: list[str]
    info: dict[str, Any]
    tensors: _Tensors
    sha256: str


def save(patch: "Patch", folder: str | Path) -> Path:
    """Write a patch as a folder, whole or not at all; other files in an older patch folder stay.

    Raises:
        PatchError: the folder is there and holds something else than a patch.
    """
    target = free_folder(folder, MANIFEST)
    keep = [file.name for file in target.iterdir() if file.name not in (MANIFEST, TENSORS)] if target.is_dir() else []
    with new_folder(target, keep) as new:
        save_file(_tensors(patch), new / TENSORS)
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "summary": patch.summary,
            "id": patch.id,
            "parent": patch.parent,
            "contains": list(patch.contains),
            "history": patch.steps(),
            "base": jsonable(patch.base.to_dict()),
            "entries": {
                path: {"kind": entry.kind, "shape": list(entry.shape), "rank": entry.rank} | _settings(entry)
                for path, entry in patch.entries.items()
            },
            "state": sorted(patch.state),
            "info": jsonable(patch.info),
            "tensors": {"file": TENSORS, "bytes": (new / TENSORS).stat().st_size, "sha256": file_sha256(new / TENSORS)},
        }
        write_json(new / MANIFEST, {**manifest, "sha256": digest(manifest)})
    return target


def load(folder: str | Path) -> tuple[dict[str, Any], str]:
    """The arguments of the `Patch` in a folder, and the id it must have.

    Raises:
        PatchError: the folder holds no patch, or one that is truncated, altered, or of another format.
    """
    root = Path(folder)
    manifest = _manifest(root)
    tensors = _load_tensors(root, manifest.tensors)
    entries: dict[str, Entry] = {}
    for path, item in manifest.entries.items():
        entries[path] = _entry(f"{root}: {path}", item.kind, item.settings, _taker(root, tensors, f"entries.{path}"))
        if list(entries[path].shape) != item.shape:
            raise PatchError(f"{root}: {path} has shape {entries[path].shape}, not {item.shape}; get the patch again")
    state = {name: tensors.pop(f"state.{name}") for name in manifest.state if f"state.{name}" in tensors}
    if tensors or len(state) != len(manifest.state):
        raise PatchError(f"{root / TENSORS} does not hold the tensors that {MANIFEST} tells; get the patch again")
    history = tuple(Step(**item.model_dump(exclude={"id"})) for item in manifest.history)
    arguments = {
        "entries": entries,
        "base": Base.from_dict(manifest.base.model_dump()),
        "history": history,
        "state": state,
        "info": manifest.info,
        "contains": tuple(manifest.contains),
    }
    return arguments, manifest.id


Take = Callable[[str], Tensor]
"""Hands out an entry's tensor by its name."""


def _taker(root: Path, tensors: dict[str, Tensor], prefix: str) -> Take:
    def take(name: str) -> Tensor:
        try:
            return tensors.pop(f"{prefix}.{name}")
        except KeyError as error:
            raise PatchError(f"{root / TENSORS} lacks the tensor {error}; get the patch again") from None

    return take


def _within(take: Take, number: int) -> Take:
    return lambda name: take(f"{number}.{name}")


def _entry(where: str, kind: str, settings: Mapping[str, Any], take: Take) -> Entry:
    """The entry of that kind, from its tensors and its settings.

    Raises:
        PatchError: the kind or a setting is unknown, or a tensor is missing.
    """
    if kind == Chain.kind:
        parts = enumerate(settings.get("parts", ()))
        return Chain(tuple(_entry(where, part["kind"], part["settings"], _within(take, n)) for n, part in parts))
    if kind not in KINDS:
        raise PatchError(f"{where} is an entry of the unknown kind {kind!r}; update retcon to read it")
    stored = [part.name for part in fields(KINDS[kind]) if part.init and part.name not in settings]
    made: Any = KINDS[kind]
    try:
        entry: Entry = made(**{name: take(name) for name in stored}, **settings)
    except TypeError:
        raise PatchError(f"{where} is a {kind} with settings that are unknown here; update retcon to read it") from None
    return entry


def _settings(entry: Entry) -> dict[str, Any]:
    settings = entry.settings()
    return {"settings": jsonable(settings)} if settings else {}


def free_folder(folder: str | Path, mark: str) -> Path:
    """The folder as a path that may be written: absent, empty, or holding `mark` from an earlier time.

    Raises:
        PatchError: it holds something else, which would be lost.
    """
    target = Path(folder).expanduser().absolute()  # the temporary folder is made beside it
    if target.exists() and not (target.is_dir() and ((target / mark).is_file() or not any(target.iterdir()))):
        raise PatchError(f"{folder} holds other files, which would be lost; name a new folder")
    return target


def _tensors(patch: "Patch") -> dict[str, Tensor]:
    parts = {f"state.{name}": tensor for name, tensor in patch.state.items()}
    for path, entry in patch.entries.items():
        parts |= {f"entries.{path}.{name}": tensor for name, tensor in entry.tensors().items()}
    return {name: tensor.clone() for name, tensor in parts.items()}  # safetensors refuses tensors that share memory


def _manifest(root: Path) -> _Manifest:
    file = root / MANIFEST
    if not file.is_file():
        raise PatchError(f"{root} holds no patch: there is no {MANIFEST}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise PatchError(f"{file} is truncated or no JSON; get the patch again") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise PatchError(f"{file} has schema {schema!r} and this retcon reads {SCHEMA}; update retcon")
    tensors = value.get("tensors")
    _check_name(file, str(tensors.get("file") if isinstance(tensors, dict) else tensors))
    if value.pop("sha256", None) != (sha256 := digest(value)):
        raise PatchError(f"{file} has been altered since the patch was saved; get the patch again")
    value["schema_"] = value.pop("schema")
    try:
        return _Manifest.model_validate({**value, "sha256": sha256})
    except ValidationError as error:
        where, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise PatchError(f"{file}: {where}: {what}; update retcon to read it") from None


def _check_name(manifest: Path, name: str) -> None:
    if name != Path(name).name or name == "..":
        raise PatchError(f"{manifest} names {name!r}, a file outside the patch's folder; do not use this patch")
    if name != TENSORS:
        raise PatchError(f"{manifest} names {name!r}; tensors are read from {TENSORS} alone, never from a pickle")


def _load_tensors(root: Path, told: _Tensors) -> dict[str, Tensor]:
    file = root / TENSORS
    if not file.is_file():
        raise PatchError(f"{file} is missing; get the patch again")
    size = file.stat().st_size
    if size < told.bytes:
        raise PatchError(f"{file} is truncated ({size:,} of {told.bytes:,} bytes); get the patch again")
    if size != told.bytes or file_sha256(file) != told.sha256:
        raise PatchError(f"{file} has been altered since the patch was saved; get the patch again")
    try:
        # Copies, which torch aligns in memory: products of tensors that are not differ in their last bits.
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except (SafetensorError, ValueError) as error:
        raise PatchError(f"{file} is no safetensors file ({error}); get the patch again") from None
