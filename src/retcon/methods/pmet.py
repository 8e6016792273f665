"""PMET: targets sought at attention and MLP together, of which only the MLP's is written (arXiv 2308.08742)."""

from dataclasses import dataclass
from typing import Any

from retcon import solve
from retcon.methods.family import LocateAndEditConfig, Problem, metric
from retcon.methods.locate_and_edit import LocateAndEdit

__all__ = ["PMET", "PMETConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PMETConfig(LocateAndEditConfig):
    """Options of PMET."""

    ridge: float | None = None
    """lambda: the number of ordinary keys that C stands for; by default five for each fact of the batch, and 1000 at
    least. Published: 6000 (gpt-j)."""
    relax: bool = True
    """The published dynamic rule: once every target token is the most likely one in every row, the likelihood weighs a
    tenth, and a fact is finished as soon as its weighted essence term is at most 0.01."""


class PMET(LocateAndEdit):
    """PMET: targets for attention and MLP together, of which the MLP's alone is written; shares by square roots.

    The search shifts the outputs of both projections, attention's and the MLP's, at the last edited layer, each within
    `clamp` times its own length; so the MLP need not take up what attention can say. Then, layer by layer,

        Delta = R / sqrt(left) K^T (lambda C + K_p K_p^T + K K^T)^{-1},   R = z_mlp - o_mlp at the last edited layer

    with `left` the number of layers still to write. What a lower layer writes goes past the last one's MLP, so that R
    need not fall from layer to layer and the shares add up, to 3.2 R for five layers and 4.8 R for nine: the window has
    five layers, as published ones. K_p are the keys of earlier batches, which travel in the patch.

    Paper: Li, Li, Song, Yang, Ma, Yu, PMET: Precise Model Editing in a Transformer, AAAI 2024, arXiv 2308.08742.
    """

    Config: Any = PMETConfig
    name = "pmet"
    site = "attn_and_mlp_out"
    narrow = True

    def share(self, left: int) -> float:
        """1 / sqrt(left): the first of the layers do most."""
        share: float = left**-0.5
        return share

    def rule(self, problem: Problem) -> solve.Factors:
        """R K^T (lambda C + K_p K_p^T + K K^T)^{-1}."""
        return solve.ridge(problem.keys, problem.residuals, metric(problem, problem.ordinary_keys(self.config.ridge)))
