"""LoRA as an editor: low-rank factors on the MLP's projections, trained on all facts together (arXiv 2106.09685)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.family import edited_layers
from retcon.methods.fine_tuning import FineTuning, trained_dtype
from retcon.methods.mlp_sites import Site, mlp_paths, refusal
from retcon.methods.training import Schedule, TrainingConfig
from retcon.methods.training_rows import Change
from retcon.patch import Entry, LowRank
from retcon.patch.base import projection

__all__ = ["Factors", "LoRA", "LoRAConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig(TrainingConfig):
    """Options of LoRA."""

    layers: tuple[int, ...] | None = None
    """Layers whose MLP is adapted; by default all of them."""
    sites: tuple[Site, ...] = ("mlp_in", "mlp_out")
    """Projections to adapt in each: `mlp_in` (gate and up, or the one there is), `mlp_out` (down)."""
    rank: int = 8
    """Factors of each projection's change."""
    alpha: float = 16.0
    """The change is alpha/rank times the product of its factors."""
    schedule: Schedule = "breadth"
    """`breadth`: mini-batches over all requests, shuffled anew for each pass; `depth`: each request to convergence, one
    after the other."""
    steps: int = 50
    """The most passes over all requests; with `depth`, the most steps on each."""
    lr: float = 1e-3
    """Adam's learning rate. EasyEdit's: 5e-3."""


class LoRA(FineTuning):
    """LoRA: train low-rank factors on the MLP's projections, on all facts together; the patch is an adapter as it is.

        y = W x + alpha/r B A x,   A (r, d_in) Gaussian with variance 1/d_in, B (d_out, r) zero at first

    Both are trained by the loss and the schedule of `locft-bf`, without dropout, so that equal seeds give equal
    patches. The patch holds alpha/r B and A^T; `patch.to_lora` writes them for PEFT without any loss.

    Paper: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv 2106.09685.
    """

    Config: Any = LoRAConfig
    name: str = "lora"
    order_matters: bool = False

    def unsupported(self, lm: LM) -> str | None:
        """Why a model cannot be edited; None where it can."""
        return refusal(lambda: self.paths(lm))

    def paths(self, lm: LM) -> list[str]:
        """Module paths of the adapted projections, from below.

        Raises:
            RetconError: a layer is not there, or no site is named.
            UnsupportedModel: a layer's MLP has no projections that read the residual stream.
        """
        chosen = range(lm.arch.n_layers) if self.config.layers is None else self.config.layers
        return mlp_paths(lm, edited_layers(lm, chosen), self.config.sites)

    def change(self, lm: LM, paths: Sequence[str]) -> Change:
        """Factors whose product is zero; A is drawn from the seed.

        Raises:
            RetconError: the rank is below 1, or alpha is zero.
        """
        return Factors.drawn(lm, paths, self.config.rank, self.config.alpha, self.config.seed)


@dataclass(frozen=True, slots=True)
class Factors:
    """y + scale (x A^T) B^T at each projection."""

    A: Mapping[str, Float[Tensor, "r d_in"]]
    B: Mapping[str, Float[Tensor, "d_out r"]]
    scale: float

    @classmethod
    def drawn(cls, lm: LM, paths: Sequence[str], rank: int, alpha: float, seed: int) -> "Factors":
        """A from a seeded Gaussian, with what it gives as large as what it reads; B zero.

        Raises:
            RetconError: the rank is below 1, or alpha is zero.
        """
        if rank < 1 or not alpha:
            raise RetconError("a LoRA has at least rank 1, and an alpha other than zero")
        generator = torch.Generator().manual_seed(seed)
        A, B = {}, {}
        for path in paths:
            module, (d_out, d_in), _ = projection(lm.model, path)
            place: dict[str, Any] = {"device": next(module.parameters()).device, "dtype": trained_dtype(lm)}
            noise = torch.randn(rank, d_in, generator=generator) / d_in**0.5  # fp32 on the CPU, whatever the model's
            A[path] = noise.to(**place).requires_grad_()
            B[path] = torch.zeros(d_out, rank, requires_grad=True, **place)
        return cls(A, B, alpha / rank)

    @property
    def leaves(self) -> Sequence[Tensor]:
        """All factors."""
        return [*self.A.values(), *self.B.values()]

    def entries(self) -> Mapping[str, Entry]:
        """U = scale B and V = A^T of each projection."""
        return {path: LowRank(self.scale * self.B[path], A.T) for path, A in self.A.items()}

    def confine(self) -> None:
        """They may be anywhere."""
