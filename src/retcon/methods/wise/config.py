"""Options of WISE."""

from dataclasses import dataclass
from typing import Literal

from retcon.errors import RetconError
from retcon.methods.wise.shards import Variant
from retcon.precision import Precision

__all__ = ["MOST_TEMPLATES", "WISEConfig", "check"]

MOST_TEMPLATES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WISEConfig:
    """Options of WISE."""

    layer: int | None = None
    """Layer whose MLP output projection gets the memories; by default at 0.85 of the depth."""
    lr: float = 1.0
    """Step of plain gradient descent."""
    steps: int = 70
    """Steps an edit, at most."""
    alpha: float = 5.0
    """Score below which ordinary prompts are kept, before scaling."""
    beta: float = 20.0
    """Score that edited prompts are to reach, before scaling."""
    gamma: float = 10.0
    """By how much edited prompts are to score above ordinary ones, before scaling."""
    margin_scale: float | Literal["auto"] = "auto"
    """What the three margins are multiplied by; `auto` is the median norm of the projection's output over ordinary
    prompts, divided by 20. Published: 1, for models of 7B. A state goes on with its own."""
    act_ratio: float = 0.88
    """Share of a memory's threshold that a prompt must exceed."""
    mask_ratio: float = 0.2
    """Share of the weight's entries that a memory may change."""
    clip: float = 1.0
    """How far an entry may be moved."""
    save_freq: int = 20
    """Edits after which a memory is closed and a new one begins."""
    merge_freq: int | None = 1000
    """Edits, a multiple of save_freq, after which closed memories are merged into one; None for never."""
    density: float = 0.53
    """Share of a memory's entries that a merge keeps."""
    variant: Variant = "retrieve"
    """Whether a prompt finds its memory among all of them, or all that are closed are one at the end of a run."""
    score: Literal["act", "linear"] = "act"
    """Whether prompts are scored behind the activation function, as in the released code, or before it."""
    activation: str | None = None
    """Its name; by default the one of the model's configuration."""
    order: Literal["raw", "ratio"] = "raw"
    """Which of several eligible memories a prompt takes: by score, or by score over threshold."""
    long_prompt: Literal["mean", "max"] = "mean"
    """The score of a prompt of more than 100 tokens: their mean as of any other, or, as released, their largest."""
    threshold_stat: Literal["mean", "min"] = "mean"
    """An edit's own score, over its rows; a memory's threshold is the least of its edits'."""
    recalibrate: bool = True
    """Whether a memory's threshold is measured anew for all its edits whenever it is closed or stored, since later
    edits move it; released: false."""
    templates: int = 4
    """Contexts that each prompt is also trained in, up to ten, which the model writes. Published: 10."""
    locality_rows: int = 8
    """Ordinary prompts that each edit is held against; they cost little, as no layer above the memory runs for them.
    Published: 1."""
    scope: Literal["prompt", "subject"] = "prompt"
    """What the margins hold apart: an edit's prompts from ordinary ones, or, inside the edit's prompts, the tokens of
    its subject from all others. Prompts are routed by all their tokens in either case. Released: subject wherever the
    ordinary prompt happens to be a part of the edit's."""
    margin_tokens: Literal["prompt", "all"] = "prompt"
    """Tokens of an edit's rows that the margins look at: the prompt's, by which it will be routed, or, as released, the
    answer's too (but for its last, which nothing reads)."""
    replay: bool = False
    """Whether an edit is also held apart from earlier ones: one edit of each closed memory stays below alpha in the
    open one, and one of the open one's own above beta. Released: no, and then only once memories have been merged."""
    stop: float = 0.02
    """Loss below which an edit may end early, in nats."""
    stop_on: Literal["answer", "loss"] = "answer"
    """Which loss that is: the answer's, once every row of the edit scores above every ordinary one by the margin
    between them; or the sum of the answer's and the margins', as released."""
    stop_change: float = 1e-4
    """With stop_on loss: change of the loss below which it then ends."""
    precision: Precision = "float32"
    """Dtype of the matrix products above the memory."""
    seed: int = 0
    """Seed of masks, of ordinary texts, of their choice, and of the edits that are replayed."""


def check(config: WISEConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        RetconError: naming the option.
    """
    least = {"steps": config.steps, "save_freq": config.save_freq, "locality_rows": config.locality_rows}
    for name, value in least.items():
        if value < 1:
            raise RetconError(f"{name} is {value}; it must be 1 or more")
    for name in ("mask_ratio", "density"):
        if not 0 < getattr(config, name) <= 1:
            raise RetconError(f"{name} is {getattr(config, name)}; it must be above 0 and at most 1")
    if not 0 <= config.templates <= MOST_TEMPLATES:
        raise RetconError(f"templates is {config.templates}; it must be 0 to {MOST_TEMPLATES}")
    if config.merge_freq is not None and (config.merge_freq < 1 or config.merge_freq % config.save_freq):
        raise RetconError(f"merge_freq is {config.merge_freq}; it must be a multiple of save_freq, {config.save_freq}")
    if config.replay and config.variant != "retrieve":
        raise RetconError("replay keeps memories apart that prompts choose among; use it with variant retrieve")
    if config.margin_scale != "auto" and not config.margin_scale > 0:
        raise RetconError(f"margin_scale is {config.margin_scale}; it must be above 0, or auto")
