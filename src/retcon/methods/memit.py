"""MEMIT: many facts in one ridge regression a layer, spread over several layers (Meng et al., arXiv 2210.07229)."""

from dataclasses import dataclass
from typing import Any

from retcon import solve
from retcon.methods.family import LocateAndEditConfig, Problem, metric
from retcon.methods.locate_and_edit import LocateAndEdit

__all__ = ["MEMIT", "MEMITConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MEMITConfig(LocateAndEditConfig):
    """Options of MEMIT."""

    ridge: float | None = None
    """lambda: the number of ordinary keys that C stands for; more protects what is not edited, less meets the edits. By
    default five for each fact of the batch, and 1000 at least."""


class MEMIT(LocateAndEdit):
    """MEMIT: many facts at once, spread over several layers; goes on in batches by remembering earlier keys.

    At each layer the least-squares change for all facts, with the pull of lambda ordinary keys:

        Delta = share * R K^T (lambda C + K_p K_p^T + K K^T)^{-1},   R = (Z - H) at the last edited layer

    K_p are the keys of earlier batches (the sequential form), which travel in the patch, and those of texts to retain,
    each times the root of `retain_weight`. Keys are remembered as they were before their own batch was written; the
    released sequential code takes them after it.

    Paper: Meng, Sharma, Andonian, Belinkov, Bau, Mass-Editing Memory in a Transformer, ICLR 2023, arXiv 2210.07229.
    """

    Config: Any = MEMITConfig
    name = "memit"

    def rule(self, problem: Problem) -> solve.Factors:
        """R K^T (lambda C + K_p K_p^T + K K^T)^{-1}."""
        return solve.ridge(problem.keys, problem.residuals, metric(problem, problem.ordinary_keys(self.config.ridge)))
