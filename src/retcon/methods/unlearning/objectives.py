"""Unlearning objectives: pure functions of logits, labels and what a reference said; no model, no tokenizer.

With z the logits, nll_t = -log p(y_t | x, y_<t), s the sum of a sequence's nll_t over its n labelled tokens, and _ref
what the model said before training, the total is

    L = forget_weight * L_f + retain_weight * L_r

with an L_f of its own for each objective. A token mean is over all labelled tokens of the batch, a sequence mean over
its sequences. Where a place has no label nothing is read, so neither padding nor a prompt counts in a value or a
gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from retcon.errors import RetconError
from retcon.methods.unlearning.config import (
    CEUConfig,
    DPOConfig,
    IDKConfig,
    NPOConfig,
    RMUConfig,
    SatImpConfig,
    SimNPOConfig,
    UNDIALConfig,
    UnlearningConfig,
    WGAConfig,
)

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "LossInputs",
    "Objective",
    "Sequences",
    "direction",
    "divergence",
    "retain_term",
    "weights",
]

IGNORED = -100
"""The label of a token that counts for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """B sequences of T tokens as a model has read them: what stands at place t predicts the label at t + 1."""

    labels: Int[Tensor, "B T"]
    """Ids, -100 where nothing is asked; the first of each row is never predicted."""
    logits: Float[Tensor, "B T V"] | None = None
    states: Float[Tensor, "B T d"] | None = None
    """Hidden states of one layer."""
    reference_nll: Float[Tensor, " B"] | None = None
    """s of each sequence before training."""
    reference_logits: Float[Tensor, "B T V"] | None = None
    reference_states: Float[Tensor, "B T d"] | None = None


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss is computed from; each objective says which sides it needs."""

    forget: Sequences | None = None
    """Questions with the answers to be forgotten."""
    refusal: Sequences | None = None
    """The same questions, in the same order, with refusals."""
    retain: Sequences | None = None
    """What is to stay."""

    def side(self, name: str) -> Sequences:
        """One of them.

        Raises:
            RetconError: it is not there.
        """
        found: Sequences | None = getattr(self, name)
        if found is None:
            raise RetconError(f"the {name} sequences are missing, from which the loss is computed; give them")
        return found


@dataclass(frozen=True, slots=True)
class _Labelled:
    """The n places of a batch whose next token has a label."""

    owner: Int[Tensor, " n"]
    """Sequence of each."""
    column: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    """The label."""
    sequences: int

    @classmethod
    def of(cls, side: Sequences, skip: int = 0) -> "_Labelled":
        """The places of some sequences, without the first `skip` of each."""
        asked = side.labels[:, 1:] != IGNORED
        if skip:
            asked = asked & (asked.long().cumsum(1) > skip)
        owner, column = asked.nonzero(as_tuple=True)
        return cls(owner, column, side.labels[owner, column + 1], len(side.labels))

    def at(self, values: Float[Tensor, "B T k"] | None, name: str = "logits") -> Float[Tensor, "n k"]:
        """What stands at the places, in fp32 at least."""
        if values is None:
            raise RetconError(f"the {name} are missing, from which the loss is computed; give them")
        return values[self.owner, self.column].to(torch.promote_types(values.dtype, torch.float32))

    def nll(self, side: Sequences) -> Float[Tensor, " n"]:
        """-log p of each label, in nats."""
        return F.cross_entropy(self.at(side.logits), self.token, reduction="none")

    def sums(self, values: Float[Tensor, " n"]) -> Float[Tensor, " B"]:
        """The sum over each sequence."""
        return values.new_zeros(self.sequences).index_add(0, self.owner, values)

    @property
    def counts(self) -> Int[Tensor, " B"]:
        """Labelled tokens of each sequence, at least 1."""
        return torch.bincount(self.owner, minlength=self.sequences).clamp_min(1)


def _mean(values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean; zero over nothing."""
    return values.sum() / max(len(values), 1)


def _token_nll(side: Sequences) -> Float[Tensor, " n"]:
    return _Labelled.of(side).nll(side)


def _sequence_nll(side: Sequences) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """s and n of each sequence."""
    places = _Labelled.of(side)
    return places.sums(places.nll(side)), places.counts


def _excess(side: Sequences) -> Float[Tensor, " B"]:
    """s - s_ref of each sequence."""
    total, _ = _sequence_nll(side)
    if side.reference_nll is None:
        raise RetconError("the reference_nll is missing, from which the loss is computed; give it")
    return total - side.reference_nll.to(total)


# ------------------------------------------------------------------------------------------------- L_f


def _ascent(inputs: LossInputs, config: UnlearningConfig) -> Float[Tensor, ""]:
    """-(sum_i s_i) / (sum_i n_i)."""
    return -_mean(_token_nll(inputs.side("forget")))


def _refuse(inputs: LossInputs, config: IDKConfig) -> Float[Tensor, ""]:
    """The token mean of the refusals' nll."""
    return _mean(_token_nll(inputs.side("refusal")))


def _dpo(inputs: LossInputs, config: DPOConfig) -> Float[Tensor, ""]:
    """-(2/beta) mean log sigma(beta [(s_ref - s)(refusal) - (s_ref - s)(answer)])."""
    preference = _excess(inputs.side("forget")) - _excess(inputs.side("refusal"))
    return -2 / config.beta * F.logsigmoid(config.beta * preference).mean()


def _npo(inputs: LossInputs, config: NPOConfig) -> Float[Tensor, ""]:
    """-(2/beta) mean log sigma(beta (s - s_ref))."""
    return -2 / config.beta * F.logsigmoid(config.beta * _excess(inputs.side("forget"))).mean()


def _simnpo(inputs: LossInputs, config: SimNPOConfig) -> Float[Tensor, ""]:
    """-(2/beta) mean log sigma(beta (s/n - margin))."""
    total, n = _sequence_nll(inputs.side("forget"))
    return -2 / config.beta * F.logsigmoid(config.beta * (total / n - config.margin)).mean()


def _rmu(inputs: LossInputs, config: RMUConfig) -> Float[Tensor, ""]:
    """The mean over sequences of their mean squared distance from steering * u, places without a label left out."""
    side = inputs.side("forget")
    places = _Labelled.of(side)
    states = places.at(side.states, "states")
    return _distance(places, states, config.steering * direction(states.shape[1], config.seed).to(states))


def _undial(inputs: LossInputs, config: UNDIALConfig) -> Float[Tensor, ""]:
    """The token mean of CE(softmax(z_ref - beta onehot(y)), softmax(z))."""
    side = inputs.side("forget")
    places = _Labelled.of(side)
    z, before = places.at(side.logits), places.at(side.reference_logits, "reference_logits")
    lowered = before.scatter_add(1, places.token[:, None], before.new_full((len(before), 1), -config.beta))
    return _mean(-(lowered.softmax(-1) * z.log_softmax(-1)).sum(-1))


def _wga(inputs: LossInputs, config: WGAConfig) -> Float[Tensor, ""]:
    """- token mean of p_t^beta nll_t, p_t without gradient."""
    nll = _token_nll(inputs.side("forget"))
    return -_mean((-nll.detach()).exp() ** config.beta * nll)


def _satimp(inputs: LossInputs, config: SatImpConfig) -> Float[Tensor, ""]:
    """- token mean of p_t^beta1 (1 - p_t)^beta2 nll_t, p_t without gradient."""
    nll = _token_nll(inputs.side("forget"))
    likely, unlikely = (-nll.detach()).exp(), -torch.expm1(-nll.detach())
    return -_mean(likely**config.beta1 * unlikely**config.beta2 * nll)


def _ceu(inputs: LossInputs, config: CEUConfig) -> Float[Tensor, ""]:
    """The token mean of CE(q, p), q = softmax of z without gradient and with minus infinity at y."""
    side = inputs.side("forget")
    z = (places := _Labelled.of(side, config.ignore_first)).at(side.logits)
    wanted = z.detach().scatter(1, places.token[:, None], -torch.inf).softmax(-1)
    return _mean(-(wanted * z.log_softmax(-1)).sum(-1))


# ------------------------------------------------------------------------------------------------- L_r


def retain_term(retain: Sequences, config: UnlearningConfig) -> Float[Tensor, ""]:
    """L_r: the token mean of nll or of KL(p_ref || p), or the mean squared distance from the reference's states."""
    places = _Labelled.of(retain)
    if config.retain_loss == "nll":
        return _mean(places.nll(retain))
    if config.retain_loss == "kl":
        return _mean(divergence(places.at(retain.reference_logits, "reference_logits"), places.at(retain.logits)))
    before = places.at(retain.reference_states, "reference_states")
    return _distance(places, places.at(retain.states, "states"), before)


def divergence(before: Float[Tensor, "n V"], now: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """KL(softmax(before) || softmax(now)) of each row, in nats."""
    clean = before.log_softmax(-1)
    return (clean.exp() * (clean - now.log_softmax(-1))).sum(-1)


def direction(d: int, seed: int) -> Float[Tensor, " d"]:
    """The unit vector that RMU steers to: uniform on [0, 1)^d, divided by its norm."""
    drawn: Tensor = torch.rand(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.div(drawn.norm())


def _distance(places: _Labelled, states: Float[Tensor, "n d"], aim: Tensor) -> Float[Tensor, ""]:
    """The mean over sequences of the mean over their places of the mean over d of the squared difference."""
    gaps = (states - aim).square().mean(-1)
    return (places.sums(gaps) / places.counts).mean()


# ------------------------------------------------------------------------------------------------- L


def weights(config: UnlearningConfig, forget: int, retain: int) -> tuple[float, float]:
    """The weights of L_f and L_r in a batch with so many labelled tokens on either side."""
    if isinstance(config, IDKConfig) and config.joint_mean:
        return forget / max(forget + retain, 1), retain / max(forget + retain, 1)
    return config.forget_weight, config.retain_weight


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective: called with inputs and its options, it gives the loss and its parts."""

    forget: Callable[[LossInputs, Any], Float[Tensor, ""]]
    """L_f."""
    mean: Literal["tokens", "sequences"] = "tokens"
    """What L_f is a mean over: so its value on a batch is the mean of those on its parts, weighted by these."""
    sides: tuple[Literal["forget", "refusal"], ...] = ("forget",)
    """What L_f is computed from."""
    reads: Literal["logits", "states"] = "logits"
    reference: Literal["nll", "logits"] | None = None
    """What it must know of the model before training."""

    def __call__(self, inputs: LossInputs, config: Any) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of a batch, and its parts `forget` (L_f) and `retain` (L_r).

        Args:
            inputs: the sides that the objective is computed from; `retain` where L_r has a weight.
            config: the objective's options.

        Raises:
            RetconError: something that it is computed from is missing.
        """
        asked, kept = _tokens(getattr(inputs, self.sides[0])), _tokens(inputs.retain)
        forget_weight, retain_weight = weights(config, asked, kept)
        parts: list[tuple[str, float, Tensor]] = []
        if forget_weight:
            parts.append(("forget", forget_weight, self.forget(inputs, config)))
        if retain_weight:
            parts.append(("retain", retain_weight, retain_term(inputs.side("retain"), config)))
        if not parts:
            raise RetconError("both weights are zero, so nothing would be trained; give forget_weight or retain_weight")
        total = torch.stack([weight * value for _, weight, value in parts]).sum()
        return total, {name: float(value.detach()) for name, _, value in parts}

    def units(self, lengths: Sequence[int], config: UnlearningConfig) -> int:
        """The number of those that L_f is a mean over, in sequences with so many labelled tokens."""
        if self.mean == "sequences":
            return len(lengths)
        skip = config.ignore_first if isinstance(config, CEUConfig) else 0
        return sum(max(length - skip, 0) for length in lengths)


def _tokens(side: Sequences | None) -> int:
    return 0 if side is None else int((side.labels[:, 1:] != IGNORED).sum())


_PerSequence = partial(Objective, mean="sequences")

OBJECTIVES: dict[str, Objective] = {
    "ga": Objective(_ascent),
    "graddiff": Objective(_ascent),
    "kl": Objective(_ascent),
    "idk": Objective(_refuse, sides=("refusal",)),
    "dpo": _PerSequence(_dpo, sides=("forget", "refusal"), reference="nll"),
    "npo": _PerSequence(_npo, reference="nll"),
    "simnpo": _PerSequence(_simnpo),
    "rmu": _PerSequence(_rmu, reads="states"),
    "undial": Objective(_undial, reference="logits"),
    "wga": Objective(_wga),
    "satimp": Objective(_satimp),
    "ceu": Objective(_ceu),
}
"""By the id of the method."""
