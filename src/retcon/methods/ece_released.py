"""ECE as its code was released: MEMIT on the neurons that matter to a batch (doi 10.1145/3696410.3714835)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import solve
from retcon.errors import RetconError
from retcon.locate.attribution import top_neurons
from retcon.methods.family import Problem, cost
from retcon.methods.memit import MEMIT, MEMITConfig
from retcon.patch import Patch
from retcon.patch.base import projection, readable_weight

__all__ = ["ECEReleased", "ECEReleasedConfig", "Score", "neuron_state", "restricted", "scores"]

Score = Literal["AS", "WI", "RS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ECEReleasedConfig(MEMITConfig):
    """Options of ECE as released."""

    score: Score = "AS"
    """By what neurons are chosen: AS, their activations at the facts; WI, their weights; RS, the product of both."""
    p: float = 0.8
    """Share of the score's sum that the chosen neurons hold; 1 takes all of them, and is MEMIT."""


class ECEReleased(MEMIT):
    """ECE as released: sequential MEMIT, restricted at each layer to the neurons that score highest for the batch.

        AS  s_n = sum_j |K[n, j]|       WI  s_n = |W[:, n]|_1       RS  s_n = sum_j |K[n, j]| |W[:, n]|_1
        S = the highest scores that together stay within p of their sum, one at least
        Delta[:, S] = share * R K[S]^T ((lambda C + K_p K_p^T)[S, S] + K[S] K[S]^T)^{-1},   0 elsewhere

    RS is corrected: the released code mixes its axes and signs. W is the model's own weight. A batch's neurons are
    chosen once a layer and stay in later rounds. They and their share of the score are in the patch.

    Paper: Zhang et al., Explainable and Efficient Editing for Large Language Models, WWW 2025,
    doi 10.1145/3696410.3714835; what it describes is `ece`.
    """

    Config: Any = ECEReleasedConfig
    name = "ece-released"

    def __init__(self, config: ECEReleasedConfig | None = None) -> None:
        super().__init__(config)
        self._chosen: dict[str, Tensor] = {}
        self._told: list[dict[str, Any]] = []

    def begun(self) -> Self:
        """A copy with room for the neurons chosen."""
        one = copy.copy(self)
        one._chosen, one._told = {}, []
        return one

    def finished(self, made: Patch) -> Patch:
        """The patch, with the neurons that were chosen."""
        if self.config.p >= 1:
            return made
        marks = neuron_state(made.state, {path: neurons[:, None] for path, neurons in self._chosen.items()})
        return replace(made, state={**made.state, **marks}, info={**made.info, "selection": self._told})

    def rule(self, problem: Problem) -> solve.Factors:
        """MEMIT's ridge on the chosen neurons."""
        if self.config.p >= 1:  # no comparison with the sum: rounding would drop neurons
            return super().rule(problem)
        if problem.path not in self._chosen:
            found = scores(problem, self.config.score)
            chosen = top_neurons(found, self.config.p)
            mass = float(found[chosen].sum() / found.sum().clamp_min(1e-300))
            self._chosen[problem.path] = chosen.cpu()
            self._told.append({"layer": problem.layer, "neurons": int(chosen.sum()), "mass": round(mass, 4)})
        return restricted(problem, problem.ordinary_keys(self.config.ridge), self._chosen[problem.path].nonzero()[:, 0])


def scores(problem: Problem, score: Score) -> Float[Tensor, " d_k"]:
    """How much each neuron matters to a batch at one layer; fp64, not negative.

    Raises:
        RetconError: the score needs a weight that is quantised.
    """
    activation = problem.keys.double().abs().sum(1)
    if score == "AS":
        return activation
    weight = readable_weight(problem.lm.model, problem.path)
    if weight is None:
        raise RetconError(f"the score {score} reads the weight of {problem.path}, which is quantised; choose score AS")
    _, _, transposed = projection(problem.lm.model, problem.path)
    strength = weight.detach().double().abs().sum(1 if transposed else 0).to(activation.device)
    return strength if score == "WI" else activation * strength


def restricted(problem: Problem, weight: float, chosen: Int[Tensor, " m"]) -> solve.Factors:
    """The ridge of MEMIT with `weight * C + past keys` as its metric, on the chosen neurons alone."""
    chosen = chosen.to(problem.keys.device)
    return solve.restricted_ridge(problem.keys, problem.residuals, cost(problem, weight), chosen)


def neuron_state(
    state: Mapping[str, Tensor], chosen: Mapping[str, Bool[Tensor, "d_k n"]]
) -> dict[str, Bool[Tensor, "d_k n"]]:
    """What a patch keeps of the neurons chosen: `cat.neurons.PATH`, a column for each solve at that module, in order.

    Args:
        state: what is remembered already, of earlier batches.
        chosen: by module path.
    """
    kept = {}
    for path, columns in chosen.items():
        name = f"cat.neurons.{path}"
        kept[name] = torch.cat([state[name], columns.cpu()], 1) if name in state else columns.cpu()
    return kept
