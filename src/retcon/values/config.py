"""What the search is asked and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Found", "FromBase", "Path", "Penalty", "SearchConfig", "Site", "Step"]

Site = Literal["layer_out", "module_out", "attn_and_mlp_out"]
"""What is shifted: a block's output, the output of its MLP projection, or that of its attention and its MLP projection.

The last has two shifts a fact; wherever shapes say `*parts` they are an axis of two, attention first, and for the
other sites there is no such axis.
"""

Path = Literal["shared", "cached", "whole"]
"""How the search runs a model; see `fast_path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Options of the target search."""

    layer: int
    """The layer whose state is shifted."""
    site: Site = "layer_out"
    """Where (`layer_out` and `module_out` are the same where the write gain is 1, norms aside). At `attn_and_mlp_out`
    clamp, weight decay and the length of a step go by each part's own |h0|."""
    steps: int = 25
    """Evaluations of the loss at most; the published schedules do one update less, and so does this."""
    optimizer: Literal["adam", "normalised"] = "adam"
    """`adam`, as published, or steps of a set length along the running mean of the gradient's direction (ours)."""
    lr: float = 0.5
    """Adam's learning rate; for `normalised`, the length of a step in units of |h0|."""
    weight_decay: float = 0.5
    """Weight of |delta| / |h0|^2, summed over parts."""
    kl: float = 0.0625
    """Weight of the essence term: KL from the clean to the shifted next-token distribution after "{subject} is a"."""
    clamp: float = 0.75
    """|delta| is kept at most this many times |h0|."""
    stop: float = 5e-2
    """A fact is finished, before its update, once its loss is below this."""
    stop_probability: float | None = None
    """If set, a fact is finished as soon as every target token has at least this probability in every row."""
    earliest_stop: int = 0
    """Evaluation, counted from 0, before which no fact is finished; 1 leaves none as it started (EAMET)."""
    relax: bool = False
    """PMET's dynamic rule (arXiv 2308.08742): while every target token of every row is the argmax, the likelihood
    weighs a tenth and the fact is finished once its weighted KL is at most 0.01. An evaluation's weight goes by what
    the evaluation before it found, which is our reading of the rule."""
    momentum: float = 0.9
    """Decay rate of the mean of gradients (Adam's first)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products above the site; shifts, losses and Adam are always fp32 or better."""


@dataclass(slots=True)
class Step:
    """What a penalty sees: the facts still searched and their shifts."""

    facts: Int[Tensor, " n"]
    """Indices of these facts in the whole list of edits."""
    delta: Float[Tensor, "n *parts d"]
    """Their shifts; gradients flow through it."""
    base: Float[Tensor, "n *parts d"]
    """Their clean site activations h0."""
    number: int
    """Which evaluation this is, from 0."""


Penalty = Callable[[Step], Float[Tensor, " n"]]
"""An extra loss for each fact; it may keep and consult the results of earlier facts."""

FromBase = Callable[[Float[Tensor, "N *parts d"]], Tensor]
"""From the clean activations h0 of all facts to something of each: where it starts, how far it may go."""


@dataclass(slots=True)
class Found:
    """The result of a search over N facts."""

    base: Float[Tensor, "N *parts d"]
    """Clean site activation h0 of the bare prompt."""
    delta: Float[Tensor, "N *parts d"]
    """The shift found; `base + delta` is the target."""
    loss: Float[Tensor, " N"]
    """J at the last evaluation made."""
    evaluations: Int[Tensor, " N"]
    """Evaluations made."""
    probability: Float[Tensor, " N"]
    """Geometric mean probability of the target's tokens over the rows, at the last evaluation made."""

    @property
    def target(self) -> Float[Tensor, "N *parts d"]:
        """The states to write, z = h0 + delta."""
        return self.base + self.delta

    def only(self, facts: Sequence[int]) -> "Found":
        """Those of some facts, in the order named."""
        rows = list(facts)
        return Found(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})
