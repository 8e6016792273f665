"""The projections of an MLP that methods may change: those that read the residual stream, and the one that writes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from retcon.errors import PatchError, RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.patch.base import projection

__all__ = ["Site", "mlp_in", "mlp_paths", "refusal"]

Site = Literal["mlp_in", "mlp_out"]
"""`mlp_in`: gate and up, or the one there is; `mlp_out`: down."""


def mlp_paths(lm: LM, layers: Iterable[int], sites: Sequence[Site]) -> list[str]:
    """Module paths of the chosen projections, from below.

    Raises:
        RetconError: no site is named.
        UnsupportedModel: a layer's MLP has no projections that read the residual stream.
    """
    if not sites:
        raise RetconError("sites is empty; name mlp_in, mlp_out or both")
    found = []
    for layer in layers:
        found += mlp_in(lm, layer) if "mlp_in" in sites else []
        found += [lm.arch.mlp_out[layer]] if "mlp_out" in sites else []
    return found


def refusal(look: Callable[[], object]) -> str | None:
    """Why a model cannot be edited, from the `UnsupportedModel` that `look` raises; None where it raises none."""
    try:
        look()
    except UnsupportedModel as error:
        return str(error)
    return None


def mlp_in(lm: LM, layer: int) -> list[str]:
    """Module paths of the projections through which a layer's MLP reads the residual stream: gate and up, or one.

    They stand beside the MLP's output projection, or, where that is a child of the block itself (OPT), outside the
    attention.

    Raises:
        UnsupportedModel: there is none.
    """
    block, out = lm.arch.blocks[layer], lm.arch.mlp_out[layer]
    attention = lm.arch.attn_out[layer].removeprefix(f"{block}.").partition(".")[0]
    parent = out.rpartition(".")[0]
    found = []
    for name, _ in lm.module(parent).named_modules(prefix=parent):
        try:
            _, (_, d_in), _ = projection(lm.model, name)
        except PatchError:
            continue
        if name != out and d_in == lm.arch.d_model and not name.startswith(f"{block}.{attention}."):
            found.append(name)
    if not found:
        raise UnsupportedModel(
            f"beside {out} ({lm.arch.family}) no projection reads the residual stream; edit the site mlp_out alone"
        )
    return found
