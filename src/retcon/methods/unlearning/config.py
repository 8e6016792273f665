"""Options of the unlearning objectives: one class for what all of them share, and what each adds."""

from dataclasses import dataclass
from typing import Literal

from retcon.precision import Precision

__all__ = [
    "CEUConfig",
    "DPOConfig",
    "GAConfig",
    "GradDiffConfig",
    "IDKConfig",
    "KLConfig",
    "NPOConfig",
    "RMUConfig",
    "SatImpConfig",
    "SimNPOConfig",
    "UNDIALConfig",
    "UnlearningConfig",
    "WGAConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningConfig:
    """What all objectives share."""

    params: Literal["lora", "full"] = "lora"
    """What is trained: low-rank factors, or a dense change, of every linear layer of attention and MLP."""
    layers: tuple[int, ...] | None = None
    """Layers to train; by default all of them."""
    rank: int = 8
    """Factors of each projection's change, with `lora`."""
    alpha: float = 16.0
    """With `lora` the change is alpha/rank times the product of its factors."""
    epochs: int = 5
    """Passes over what is to be forgotten."""
    lr: float = 1e-4
    """AdamW's learning rate. Published for all weights is a tenth of it: give that with `params=full`."""
    batch: int = 16
    """Questions to forget in a step."""
    warmup: float = 1.0
    """Passes during which the learning rate rises to its full value, in equal steps."""
    decay: Literal["constant", "linear"] = "constant"
    """Whether it then stays, or falls in equal steps so that it would be zero after the last."""
    weight_decay: float = 0.01
    """AdamW's; it pulls the change towards none."""
    clip: float = 1.0
    """The longest that a gradient may be."""
    eos: bool = True
    """Whether the end token follows each answer and refusal and counts as a token of it."""
    forget_answers: Literal["given", "own"] = "given"
    """Whether what is made unlikely is the answer that comes with a question, or the model's own greedy answer, which
    is what it says; where that is empty, the one given."""
    forget_weight: float = 1.0
    """Weight of the loss on what is to be forgotten."""
    retain_weight: float = 1.0
    """Weight of the loss on what is to stay; with 0 no texts to keep are needed."""
    retain_loss: Literal["nll", "kl", "embed"] = "nll"
    """What holds it: its likelihood, the divergence from the model's own predictions, or, with `rmu` alone, the
    distance from the model's own states."""
    retain_batch: int = 16
    """Texts to keep in a step."""
    retain_sampling: Literal["replace", "cycle"] = "replace"
    """Whether they are drawn anew for each step, or in turn, so that none comes again before all have come."""
    retain_answers: Literal["given", "own"] = "given"
    """Whether what is to stay is held by the answers that come with it, or by the model's own greedy answers, which is
    what must not change."""
    retain_tokens: int = 40
    """Tokens of an answer of the model's own, at most; of one to be forgotten too."""
    retain_prompts: bool = False
    """Whether of a question with its answer the question's tokens are held too."""
    eval_every: int = 5
    """Steps between two looks at what is forgotten and at what is kept; the last step is always followed by one."""
    watched: int = 64
    """The most questions, and the most texts to keep, that are looked at then."""
    tolerance: float = 0.1
    """Training stops, and what it gave is not kept, once the probability of the texts to keep has lost this share."""
    most_perplexity: float = 2.0
    """The same once their perplexity, or without any that of ordinary text, is this many times as high as at first."""
    goal: float | None = 0.01
    """Training stops once the probability of the answers' tokens, the geometric mean of each, is below this on average;
    none for never."""
    precision: Precision = "float32"
    """Dtype of the matrix products; the change, its gradient and AdamW are fp32."""
    seed: int = 0
    """Seed of all that is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GAConfig(UnlearningConfig):
    """Options of GA."""

    epochs: int = 3
    """Passes over what is to be forgotten."""
    lr: float = 1e-5
    """AdamW's learning rate. Proposed for all weights is a tenth of it: give that with `params=full`."""
    retain_weight: float = 0.0
    """Weight of the loss on what is to stay: none, by its definition; texts to keep are only watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradDiffConfig(UnlearningConfig):
    """Options of GradDiff."""

    lr: float = 5e-5
    """AdamW's learning rate. Proposed for all weights is a tenth of it: give that with `params=full`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig(UnlearningConfig):
    """Options of KL."""

    retain_loss: Literal["nll", "kl", "embed"] = "kl"
    """What holds what is to stay: the divergence from the model's own predictions, or its likelihood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IDKConfig(UnlearningConfig):
    """Options of IDK."""

    joint_mean: bool = False
    """Whether both losses are one mean over the tokens of refusals and texts together, as TOFU's code has it; the two
    weights then count for nothing."""
    goal: float | None = None
    """Training stops once the probability of the answers' tokens, the geometric mean of each, is below this on average;
    none for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOConfig(UnlearningConfig):
    """Options of DPO."""

    beta: float = 0.1
    """How soon a preference is enough."""
    goal: float | None = None
    """Training stops once the probability of the answers' tokens, the geometric mean of each, is below this on average;
    none for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NPOConfig(UnlearningConfig):
    """Options of NPO."""

    beta: float = 0.1
    """How soon an answer is unlikely enough; towards 0 the loss becomes that of GA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNPOConfig(UnlearningConfig):
    """Options of SimNPO."""

    beta: float = 4.5
    """How soon an answer is unlikely enough. In the authors' file: 2.5."""
    margin: float = 0.0
    """The loss a token that counts as unlikely; the paper's gamma over beta."""
    forget_weight: float = 0.125
    """Weight of the loss on what is to be forgotten. In the authors' file: 0.1375."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RMUConfig(UnlearningConfig):
    """Options of RMU."""

    layer: int | None = None
    """Whose states are steered; by default 7, or the one below the middle in a model of few layers."""
    layers: tuple[int, ...] | None = None
    """Layers to train; by default the steered one and the two below it."""
    steering: float = 2.0
    """The length of the direction that states of what is to be forgotten are brought to."""
    retain_loss: Literal["nll", "kl", "embed"] = "embed"
    """What holds what is to stay: the distance from the model's own states, its likelihood, or the divergence from the
    model's own predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNDIALConfig(UnlearningConfig):
    """Options of UNDIAL."""

    beta: float = 10.0
    """By how much the answer's logits are lowered in what is learned."""
    epochs: int = 10
    """Passes over what is to be forgotten."""
    lr: float = 1e-4
    """AdamW's learning rate, as published for all weights; ten times as much harms a small model also with `lora`."""
    retain_weight: float = 0.0
    """Weight of the loss on what is to stay; with 0 texts to keep are only watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WGAConfig(UnlearningConfig):
    """Options of WGA."""

    beta: float = 1.0
    """How much more tokens count that are still likely; 0 gives GA's loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SatImpConfig(UnlearningConfig):
    """Options of SatImp."""

    beta1: float = 5.0
    """How much more tokens count that are still likely."""
    beta2: float = 1.0
    """How much less tokens count that are nearly certain."""
    forget_weight: float = 0.1
    """Weight of the loss on what is to be forgotten. A note of the authors' has 1, and 0.1 for what is to stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CEUConfig(UnlearningConfig):
    """Options of CE-U."""

    ignore_first: int = 1
    """Tokens of each answer that are left alone, from its first."""
    retain_weight: float = 0.0
    """Weight of the loss on what is to stay; with 0 texts to keep are only watched."""
