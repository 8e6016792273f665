"""What a patch adds to one module: a function of that module's input `x` and output `y`.

Shapes are (out, in) whatever the storage: `nn.Linear.weight` is (d_out, d_in), `Conv1D.weight` of transformers
is (d_in, d_out).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.forward_record import ForwardRecord

__all__ = ["Dense", "Entry", "LowRank", "combine", "compress", "laid_out", "no_autocast", "placed", "refuse", "svd"]


@runtime_checkable
class Entry(Protocol):
    """What a patch adds to one module; frozen."""

    kind: ClassVar[str]
    """Its name in files."""

    @property
    def folds(self) -> bool:
        """Whether it is a change of the module's weight; what is not is told of the forward by a record."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""

    @property
    def rank(self) -> int:
        """The most that the rank of `delta` can be."""

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """The module's new output, of the dtype of `y`; computed in fp32 at least."""

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The change of the weight that does the same; PatchError where there is none."""

    def scaled(self, factor: float) -> "Entry":
        """The entry with `factor` times the effect."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Entry":
        """The entry with its tensors on another device, in another dtype; itself where nothing changes."""

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the names of the constructor's arguments."""

    def settings(self) -> dict[str, Any]:
        """The constructor's other arguments, in JSON types."""


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """Adds U Vᵀ to a weight: `y + (x V) Uᵀ`.

    Args:
        U: (d_out, r), the directions that are written.
        V: (d_in, r), the directions that are read.
    """

    U: Float[Tensor, "d_out r"]
    V: Float[Tensor, "d_in r"]
    kind: ClassVar[str] = "low_rank"
    folds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.U.ndim != 2 or self.V.ndim != 2 or self.U.shape[1] != self.V.shape[1]:
            shapes = f"U {tuple(self.U.shape)} and V {tuple(self.V.shape)}"
            raise PatchError(f"the factors do not fit: {shapes} must be (d_out, r) and (d_in, r)")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def rank(self) -> int:
        """The number of factors r."""
        return self.U.shape[1]

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """`y + (x V) Uᵀ`, in fp32 at least, cast to the dtype of `y`."""
        work = torch.promote_types(self.U.dtype, x.dtype)
        with no_autocast(x.device):
            added = (x.to(work) @ self.V.to(work)) @ self.U.to(work).T  # (*rows, r) -> (*rows, d_out)
            return (y.to(work) + added).to(y.dtype)

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """U Vᵀ."""
        return self.U @ self.V.T

    def scaled(self, factor: float) -> "LowRank":
        """The entry with `factor` times the effect."""
        return LowRank(self.U * factor, self.V)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "LowRank":
        """The entry on another device, in another dtype."""
        return LowRank(placed(self.U, device, dtype), placed(self.V, device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        """The factors."""
        return {"U": self.U, "V": self.V}

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """Adds D to a weight: `y + x Dᵀ`.

    Args:
        D: (d_out, d_in).
    """

    D: Float[Tensor, "d_out d_in"]
    kind: ClassVar[str] = "dense"
    folds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.D.ndim != 2:
            raise PatchError(f"a dense change is a matrix (d_out, d_in), not of shape {tuple(self.D.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""
        return self.D.shape[0], self.D.shape[1]

    @property
    def rank(self) -> int:
        """min(d_out, d_in)."""
        return min(self.shape)

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """`y + x Dᵀ`, in fp32 at least, cast to the dtype of `y`."""
        work = torch.promote_types(self.D.dtype, x.dtype)
        with no_autocast(x.device):
            return (y.to(work) + x.to(work) @ self.D.to(work).T).to(y.dtype)

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """D."""
        return self.D

    def scaled(self, factor: float) -> "Dense":
        """The entry with `factor` times the effect."""
        return Dense(self.D * factor)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Dense":
        """The entry on another device, in another dtype."""
        return Dense(placed(self.D, device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        """The matrix."""
        return {"D": self.D}

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}


def refuse(entries: Mapping[str, Entry], deed: str) -> None:
    """Refuse a deed that only changes of a weight allow.

    Args:
        entries: a patch's entries, by module path.
        deed: ends the sentence "so the patch cannot be ...".

    Raises:
        PatchError: one of them is no change of a weight.
    """
    for path, entry in entries.items():
        if not entry.folds:
            raise PatchError(
                f"{path or 'the model as a whole'} holds a {entry.kind}, which looks at the prompt and is no change of "
                f"the weight, so the patch cannot be {deed}; use patch.on(model)"
            )


def combine(first: Entry, second: Entry) -> Entry:
    """The entry that does what both do, one after the other.

    Factors are put side by side; once they outnumber min(d_out, d_in) they are compressed without loss.

    Raises:
        PatchError: the two are for modules of different shapes, or one of them is no change of a weight
            (`retcon.patch.combine` takes those too).
    """
    if first.shape != second.shape:
        raise PatchError(f"changes of shapes {first.shape} and {second.shape} cannot be for the same module")
    if not (isinstance(first, LowRank) and isinstance(second, LowRank)):
        return Dense(first.delta() + second.delta())
    both = LowRank(torch.cat([first.U, second.U], 1), torch.cat([first.V, second.V], 1))
    return both if both.rank <= min(both.shape) else _thinned(both)


def compress(entry: Entry) -> Entry:
    """The same change with as few factors as it has rank: from the SVD in fp64, singular values split evenly."""
    if not isinstance(entry, LowRank):
        return entry
    left, values, right = svd(entry)
    return _rounded(left * values.sqrt(), right * values.sqrt()) if len(values) < entry.rank else entry


def svd(entry: Entry) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "d_in k"]]:
    """P, s, W in fp64 with `delta = P diag(s) Wᵀ`, s falling, zeros dropped.

    For factors: U = Q_u R_u and V = Q_v R_v (thin QR), then the SVD of the small core R_u R_vᵀ.
    Zero is what fp64 cannot tell from it: max(core's sides) · 2⁻⁵² times the greatest value.
    """
    if isinstance(entry, LowRank):
        U, V = _balanced(entry)
        q_u, r_u = torch.linalg.qr(U)  # (d_out, min(d_out, r)), (min(d_out, r), r)
        q_v, r_v = torch.linalg.qr(V)
        core = r_u @ r_v.T
    else:
        q_u, q_v, core = None, None, entry.delta().double()
    left, values, right_t = torch.linalg.svd(core, full_matrices=False)
    floor = values[:1] * max(core.shape) * torch.finfo(torch.float64).eps
    kept = int((values > floor).sum()) if len(values) else 0
    left, values, right = left[:, :kept], values[:kept], right_t[:kept].T
    if q_u is not None and q_v is not None:
        left, right = q_u @ left, q_v @ right
    return left, values, right


def _thinned(entry: LowRank) -> LowRank:
    """min(d_out, d_in) factors in place of more.

    The thin side's QR is enough, Uᵀ = Q R gives U Vᵀ = Rᵀ (V Q)ᵀ, at a tenth of the cost of the SVD: it counts when
    facts are added one at a time. Only where R shows that the rank is lower still does the SVD follow.
    """
    U, V = _balanced(entry)
    if U.shape[1] <= min(entry.shape):  # exact zeros alone made them too many
        return _rounded(U, V)
    if U.shape[0] <= V.shape[0]:
        q, r = torch.linalg.qr(U.T)  # (n, d_out), (d_out, d_out)
        U, V = r.T, V @ q
    else:
        q, r = torch.linalg.qr(V.T)  # (n, d_in), (d_in, d_in)
        U, V = U @ q, r.T
    diagonal = r.diagonal().abs()
    deficient = bool(diagonal.min() <= diagonal.max() * len(diagonal) * torch.finfo(torch.float64).eps)
    thin = LowRank(U, V)
    if not deficient:
        return _rounded(U, V)
    left, values, right = svd(thin)
    return _rounded(left * values.sqrt(), right * values.sqrt())


def _balanced(entry: LowRank) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "d_in k"]]:
    """The factors in fp64, each pair of columns at equal norms, pairs that are exactly zero dropped.

    Mixing columns of unlike scales (1e6 times 1e-6 beside 1e-6 times 1e6) would lose the small ones to rounding.
    """
    U, V = entry.U.double(), entry.V.double()
    u_norms, v_norms = U.norm(dim=0), V.norm(dim=0)
    kept = (u_norms > 0) & (v_norms > 0)
    scale = (v_norms[kept] / u_norms[kept]).sqrt()
    return U[:, kept] * scale, V[:, kept] / scale


def _rounded(U: Tensor, V: Tensor) -> LowRank:
    return LowRank(U.float().contiguous(), V.float().contiguous())


def placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor on a device, in a dtype, without gradient; itself where nothing changes."""
    plain = tensor.detach() if tensor.requires_grad else tensor  # a detached one is another object
    return laid_out(plain.to(device=device, dtype=dtype))


def laid_out(tensor: Tensor) -> Tensor:
    """The tensor with its elements in memory as a file holds them.

    A single column of a transposed matrix counts as contiguous with any stride, and its products then differ in their
    last bits from those of the same tensor read from a file.
    """
    strides = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == strides else tensor.clone(memory_format=torch.contiguous_format)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision must not round a small change to half precision on its way to a large output."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
