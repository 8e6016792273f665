"""EMMET: many facts met exactly, or within a ridge as by MEMIT (Gupta et al., arXiv 2403.14236)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retcon import solve, stats
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.family import LocateAndEditConfig, Problem, metric
from retcon.methods.locate_and_edit import LocateAndEdit

__all__ = ["EMMET", "EMMETConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EMMETConfig(LocateAndEditConfig):
    """Options of EMMET."""

    layers: tuple[int, ...] | None = None
    """Layers to edit; by default one, the last of the family's window, as published."""
    weight: float = 5000.0
    """w: what the statistics weigh; published: 1 to 100,000."""
    regulariser: float = 0.1
    """mu: how far facts may be missed; 0 meets them exactly. Published: 0 for one fact, 0.1 for more."""


class EMMET(LocateAndEdit):
    """EMMET: ROME's equality for many facts at once, softened by a regulariser.

        Delta = R (K^T M^{-1} K + mu I)^{-1} K^T M^{-1},   M = w C

    mu = 0 meets every fact at the least cost and refuses facts that share a key. Above 0 it is MEMIT with
    lambda = w mu, to the last digit: R K^T (w mu C + K K^T)^{-1}; the patch's info tells that lambda as `ridge`. Keys
    of earlier batches count as in MEMIT, beside w mu C, or w C where mu is 0; published EMMET has none.

    Paper: Gupta, Sajnani, Anumanchipalli, A Unified Framework for Model Editing, Findings of EMNLP 2024,
    arXiv 2403.14236.
    """

    Config: Any = EMMETConfig
    name = "emmet"

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The layers asked for, or the last one of the family's window."""
        layers = super().layers(lm)
        return layers[-1:] if self.config.layers is None else layers

    def prepare(
        self,
        lm: LM,
        paths: Sequence[str],
        known: Mapping[str, stats.Moments],
        notes: dict[str, Any],
    ) -> Mapping[str, Any]:
        """Nothing; notes the effective lambda."""
        if self.config.weight <= 0 or self.config.regulariser < 0:
            raise RetconError("weight must be above 0 and regulariser 0 or more; give others")
        notes["ridge"] = self.config.weight * self.config.regulariser
        return {}

    def rule(self, problem: Problem) -> solve.Factors:
        """MEMIT's ridge with lambda = w mu, or the equality where mu is 0."""
        weight, mu = self.config.weight, self.config.regulariser
        if mu == 0:
            return solve.equality(problem.keys, problem.residuals, metric(problem, weight))
        return solve.ridge(problem.keys, problem.residuals, metric(problem, weight * mu))
