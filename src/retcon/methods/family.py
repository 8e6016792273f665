"""What the methods that locate and edit share: their options, and what a rule for one layer is given and may ask."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

from retcon import solve, stats
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.sweep import Reading
from retcon.values import SearchConfig

__all__ = [
    "NARROW",
    "SAME_KEY",
    "LocateAndEditConfig",
    "Problem",
    "Site",
    "cost",
    "edited_layers",
    "metric",
    "ordinary_keys",
    "past_keys",
    "search_config",
    "still_held",
]

SAME_KEY = 0.999
"""Cosine above which two keys count as the same."""
NARROW = 5
"""Layers that are edited at most where each of them has a search of its own, or where their shares add up."""

Site = Literal["layer_out", "module_out", "attn_and_mlp_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateAndEditConfig:
    """What all locate-and-edit methods share."""

    layers: tuple[int, ...] | None = None
    """Layers to edit; by default a window found from the model's depth."""
    statistics: str = stats.SELF
    """Text for the second moments of keys: a file, a `datasets` id, `self` (the model's own), or `none` (C = I)."""
    statistics_tokens: int | None = None
    """Tokens of it; by default 16 times the key width, 10 times for `self`."""
    templates: int = 3
    """Texts, written by the model, that the prompt must hold after; besides the bare prompt."""
    template_length: int = 10
    """Tokens of each."""
    optimizer: Literal["adam", "normalised"] = "normalised"
    """How targets are sought: `adam` as published, or `normalised` steps along the gradient, which need a third of
    the evaluations."""
    steps: int = 16
    """Evaluations of the search's loss at most; published: 25."""
    lr: float = 0.12
    """Length of a step in units of |h0|; for `adam` its learning rate (published: 0.5)."""
    momentum: float = 0.5
    """Decay rate of the mean of gradients; Adam's is 0.9."""
    weight_decay: float = 0.5
    """Weight of |delta| / |h0|^2."""
    kl: float = 0.0625
    """Weight of the essence term."""
    clamp: float = 0.75
    """Longest delta, in units of |h0|."""
    stop: float = 5e-2
    """Loss at which a fact is finished."""
    stop_probability: float | None = 0.9
    """Probability of every target token, in every row, at which a fact is finished; None to go by the loss alone, as
    published."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the search's matrix products; shifts and sums stay fp32."""
    rounds: int = 2
    """How often targets are sought and written; from the second round on only what the edited model does not yet
    hold. Published methods have one."""
    again: float = 0.6
    """Share of the facts that such a later round takes up at most (ten in any case), so that its cost stays in
    proportion: first those that are not sure under the bare prompt, the least sure of each kind before others."""
    retain_tokens: int = 40
    """Tokens of the model's own answer to a text to retain that are retained with it, at most."""
    retain_weight: float = 1.0
    """How much a key of theirs counts, where one of an earlier batch counts 1; 0 to leave such texts aside, as the
    published methods do."""
    seed: int = 0
    """Seed of templates and sampled text."""


@dataclass(slots=True)
class Problem:
    """What a method's rule for one layer gets."""

    lm: LM
    """The model, as edited so far."""
    layer: int
    path: str
    """Module path of the projection."""
    keys: Float[Tensor, "d_k N"]
    residuals: Float[Tensor, "d N"]
    """This layer's share of what is still to be written, at the projection's output."""
    reading: Reading
    moments: stats.Moments | None
    """Statistics of keys; None stands for C = I."""
    past: Float[Tensor, "d_k n"]
    """Keys that are to say what they say: of earlier batches, from the state, and of texts to retain, weighted."""
    edits: Sequence[Edit]
    extra: Any = None
    """What the method's `prepare` found for this projection."""

    def ordinary_keys(self, ridge: float | None) -> float:
        """lambda, the number of ordinary keys that C stands for; see `ordinary_keys`."""
        return ordinary_keys(ridge, self.keys.shape[1])


def ordinary_keys(ridge: float | None, facts: int) -> float:
    """lambda: as asked for, else five ordinary keys for each fact of the batch, and 1000 at least.

    In proportion, so that a batch of a thousand does not outvote the model's ordinary text.

    Raises:
        RetconError: none are asked for.
    """
    if ridge is not None and not ridge > 0:
        raise RetconError(f"ridge is {ridge:g}; it must be above 0, as nothing else holds what is not edited")
    return max(1000.0, 5.0 * facts) if ridge is None else ridge


def edited_layers(lm: LM, layers: Sequence[int] | None, *, width: int | None = None) -> tuple[int, ...]:
    """The layers to edit: those asked for, or all from 0.04 to 0.31 of the depth (1 to 9 of SmolLM2-135M's 30).

    Published windows are five or six layers that end at 0.26 (Llama-3-8B) to 0.36 (gpt2-xl) of the depth. For models
    that have not been measured the rule is a start, not a tuned choice.

    Args:
        lm: the model.
        layers: the layers asked for.
        width: how many of the window's layers, its upper ones, where not all.

    Raises:
        RetconError: a layer is not there, or they are not in rising order.
    """
    n = lm.arch.n_layers
    if layers is None:
        last = max(min(round(0.31 * (n - 1)), n - 2), 1 if n > 1 else 0)
        first = min(max(round(0.04 * (n - 1)), 1), last)
        return tuple(range(first, last + 1))[-(width or n) :]
    chosen = tuple(layers)
    if not chosen or any(not 0 <= layer < n for layer in chosen) or list(chosen) != sorted(set(chosen)):
        raise RetconError(f"layers {list(chosen)} do not fit; name some of 0 to {n - 1} in rising order")
    return chosen


def search_config(config: LocateAndEditConfig, layer: int, site: Site) -> SearchConfig:
    """The options of the search at a layer."""
    shared = {field.name for field in fields(SearchConfig)} & {field.name for field in fields(config)}
    return SearchConfig(layer=layer, site=site, **{name: getattr(config, name) for name in shared})


def metric(problem: Problem, weight: float) -> solve.Metric:
    """`weight * C + past keys`, factored; C = I where there are no statistics."""
    return solve.cholesky(cost(problem, weight))


def cost(problem: Problem, weight: float) -> Float[Tensor, "d_k d_k"]:
    """`weight * C + past keys`: what each direction of a key costs; C = I where there are no statistics.

    Past keys are those of earlier batches, and those of texts to retain by their weight.
    """
    width = problem.keys.shape[0]
    if problem.moments is None:
        second = torch.eye(width, dtype=torch.float64, device=problem.keys.device)
    else:
        second = solve.shrunk(problem.moments.second, problem.moments.count).to(problem.keys.device)
    return weight * second + problem.past @ problem.past.T


def past_keys(state: Patch | None, path: str, lm: LM) -> Float[Tensor, "d_k n"]:
    """Keys of the batches in `state`, so that a later batch leaves them alone; (d_k, 0) where there are none."""
    none = torch.zeros(lm.arch.d_mlp, 0, dtype=torch.float64, device=lm.device)
    if state is None or f"cat.keys.{path}" not in state.state:
        return none
    return state.state[f"cat.keys.{path}"].double().to(lm.device)


def still_held(past: Float[Tensor, "d_k n"], keys: Float[Tensor, "N d_k"]) -> Bool[Tensor, " n"]:
    """Which of the past keys are not among those that are to be written now.

    A fact that is edited again, or another one of its subject with the same key, gets a target that was sought on top
    of what the key holds; to hold on to that as well would leave it half-way. This is to be asked at the lowest edited
    layer, whose keys no edit moves, and goes for all layers. It can be told as long as there are fewer past keys than
    dimensions: then each of their columns is a fact.
    """
    if past.shape[1] in (0, *past.shape[:1]):
        return torch.ones(past.shape[1], dtype=torch.bool, device=past.device)
    alike = F.normalize(keys.to(past), dim=1) @ F.normalize(past, dim=0)
    return alike.amax(0) <= SAME_KEY
