"""Where the edits went: the size of a patch's change by layer and module."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from retcon.patch import Dense, Entry, LowRank, Patch
from retcon.patch.chain import parts_of
from retcon.report import plots

__all__ = ["Change", "Where", "changes", "where"]

_KINDS = {"codebook": "a codebook of {} keys", "gated_memory": "a set of {} side memories",
          "context": "a store of {} facts as text"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """What a patch does at one module."""

    path: str
    layer: int | None
    """The block's number; None where the path has none."""
    module: str
    """The path within the block, or the whole of it."""
    norm: float | None
    """Frobenius norm of the change of the weight; None where there is only a memory."""
    rank: int
    """Factors of the change, and keys of memories."""
    memory: str
    """What memory stands there, in words; empty where none does."""


@dataclass(frozen=True, slots=True)
class Where:
    """All of a patch's changes, as a page shows them."""

    changes: list[Change]
    sentence: str
    picture: Markup


def where(patch: Patch) -> Where:
    """What a patch does, module by module, in words and as a picture."""
    found = changes(patch)
    return Where(found, sentence(found), picture(found))


def changes(patch: Patch) -> list[Change]:
    """What a patch does, module by module, in the order of the layers."""
    found = [_change(path, entry) for path, entry in patch.entries.items()]
    return sorted(found, key=lambda one: (-1 if one.layer is None else one.layer, one.module))


def picture(found: Sequence[Change]) -> Markup:
    """Layers across, modules down, the norm as depth of colour; a memory is a ring."""
    layers = [one.layer for one in found if one.layer is not None]
    columns = [*(["–"] if len(layers) < len(found) else []), *map(str, range(max(layers, default=-1) + 1))]
    rows = list(dict.fromkeys(one.module for one in found))
    cells = {(one.module, "–" if one.layer is None else str(one.layer)): (one.norm, _told(one)) for one in found}
    return plots.heat(rows, columns, cells, title=f"Size of the change by layer and module. {sentence(found)}")


def sentence(found: Sequence[Change]) -> str:
    """The picture in words."""
    sized = [one for one in found if one.norm is not None]
    said = []
    if total := sum((one.norm or 0.0) ** 2 for one in sized):
        most = max(sized, key=lambda one: one.norm or 0.0)
        layers = sorted({one.layer for one in sized if one.layer is not None})
        share = 100 * (most.norm or 0.0) ** 2 / total
        where = _layers(layers)
        modules = f"{len(sized)} module{'' if len(sized) == 1 else 's'}"
        said.append(f"The weights of {modules} change{f' in {where}' if where else ''}.")
        if len(sized) > 1:
            said.append(f"The largest change is that of {most.path}, with {share:.0f}% of the squared norm of all.")
    for one in found:
        if one.memory:
            place = f"At layer {one.layer} ({one.module})" if one.layer is not None else one.module.capitalize()
            said.append(f"{place} stands {one.memory}; it looks at the prompt and changes no weight.")
    return " ".join(said) or "The patch changes nothing."


def _change(path: str, entry: Entry) -> Change:
    numbers = [part for part in path.split(".") if part.isdigit()]
    layer = int(numbers[0]) if numbers else None
    module = path.split(f".{numbers[0]}.", 1)[-1] if numbers else path or "before the prompt"
    parts = parts_of(entry)
    folding = [part for part in parts if part.folds]
    memories = [part for part in parts if not part.folds]
    return Change(
        path=path,
        layer=layer,
        module=module,
        norm=sum(_squared(part) for part in folding) ** 0.5 if folding else None,
        rank=entry.rank,
        memory=" and ".join(_memory(part) for part in memories),
    )


def _memory(entry: Entry) -> str:
    return _KINDS.get(entry.kind, f"a {entry.kind} of {{}}").format(entry.rank)


def _squared(entry: Entry) -> float:
    """||D||² of D = U Vᵀ as the sum of (UᵀU) * (VᵀV), without D; in fp64."""
    if isinstance(entry, LowRank):
        U, V = entry.U.double(), entry.V.double()
        return max(float(((U.T @ U) * (V.T @ V)).sum()), 0.0)
    matrix = entry.D if isinstance(entry, Dense) else entry.delta()
    return float(matrix.double().square().sum())


def _layers(layers: Sequence[int]) -> str:
    if not layers:
        return ""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    if whole and len(layers) > 2:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _told(one: Change) -> str:
    where = f"layer {one.layer}, {one.module}" if one.layer is not None else one.module
    size = "" if one.norm is None else f": norm {one.norm:.3g}, rank {one.rank}"
    return f"{where}{size}{f'; {one.memory}' if one.memory else ''}"
