"""Fine-tuning as an editor: FT-L, FT-M and LocFT-BF, one dense change of few projections (arXiv 2509.22072)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import forward, patch, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.family import edited_layers
from retcon.methods.record import as_patch, clock, refuse_none, resumed, timed
from retcon.methods.training import Schedule, Trained, TrainingConfig, train
from retcon.methods.training_rows import Change, Place, rows_of, texts_of
from retcon.patch import Dense, Entry, Patch
from retcon.patch.base import projection
from retcon.requests import Edit
from retcon.targets import Store

__all__ = [
    "FTL",
    "FTM",
    "DenseChange",
    "FTLConfig",
    "FTMConfig",
    "FineTuning",
    "LocFTBF",
    "LocFTBFConfig",
    "trained_dtype",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FTMConfig(TrainingConfig):
    """Options of FT-M."""

    layers: tuple[int, ...] | None = None
    """Layers whose MLP output projection is trained; by default the one at 0.7 of the depth."""
    clamp: float | None = None
    """The most that an entry of a weight may change in one call; None for no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FTLConfig(FTMConfig):
    """Options of FT-L."""

    clamp: float | None = 5e-4
    """The most that an entry of a weight may change in one call; None for no bound. Published by model: 2e-3
    (gpt2-medium), 1e-3 (gpt2-large), 5e-4 (gpt2-xl), 5e-5 (gpt-j, Mistral-7B)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocFTBFConfig(FTMConfig):
    """Options of LocFT-BF."""

    schedule: Schedule = "breadth"
    """`breadth`: mini-batches over all requests, shuffled anew for each pass; `depth`: each request to convergence, one
    after the other, as a control."""
    eos: bool = True
    """Whether the end token follows each target and is learned too, so that the model stops there."""
    layers: tuple[int, ...] | None = None
    """Layers whose MLP output projection is trained; by default the one at 0.85 of the depth."""
    lr: float = 2e-3
    """Adam's learning rate. Published for models of 7B: 5e-4, at which the default model needs more passes."""


class FineTuning:
    """What the methods share that train a change of a few projections; a subclass says which, and of what form."""

    Config: Any = FTMConfig
    name: str = ""
    order_matters: bool = True
    uses_retain: bool = True
    folds: bool = False
    """A batch is no fold over its facts: the clamp and the change are the whole call's."""
    place: Place = "masked"
    """Where target tokens are scored."""
    depth: float = 0.7
    """Where the layer is that is trained by default, as a share of the model's depth."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.order_matters = self.config.schedule == "depth"

    def paths(self, lm: LM) -> list[str]:
        """Module paths of the trained projections, from below.

        Raises:
            RetconError: a layer is not there.
        """
        chosen = self.config.layers
        layers = (default_layer(lm, self.depth),) if chosen is None else edited_layers(lm, chosen)
        return [lm.arch.mlp_out[layer] for layer in layers]

    def change(self, lm: LM, paths: Sequence[str]) -> Change:
        """The change to train, as yet without effect."""
        return DenseChange.zero(lm, paths, self.config.clamp)

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Train on all facts; with `state`, on top of that patch, which the result then contains.

        Earlier facts are not trained again: what a later call overwrites is lost, unless it is given them too.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: texts to keep, by a divergence or a likelihood; see `retain_loss`.
            state: the patch to go on from.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a target has no token, or a text to keep fewer than two.
            RetconError: there is no edit, a layer is not there, an option makes no sense, or training diverged.
        """
        refuse_none(edits)
        seconds = clock()
        with timed(seconds, "targets"):
            rows = rows_of(lm, edits, self.place, eos=self.config.eos)
            texts = texts_of(lm, retain, self.config.retain_tokens)
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state))
            with timed(seconds, "solve"):
                change = self.change(lm, self.paths(lm))
                trained = train(lm, rows, change, self.config, retain=texts)
                entries = {path: entry.to("cpu", torch.float32) for path, entry in change.entries().items()}
                info = {"targets_cached": 0, "facts": _facts(lm, edits, entries, trained)}
        return as_patch(lm, self.name, self.config, edits, entries, state, {}, seconds, info)


class FTM(FineTuning):
    """FT-M: fine-tune one projection on the target's tokens, the prompt masked; one fact after the other.

        min_D  1/n sum_t -log p(y_t | x, y_<t; W + D),   Adam, until the loss is below 0.01

    D is a change of the MLP's output projection; biases never train. With `schedule="breadth"` all facts are trained
    together, which is what `locft-bf` does.

    Paper: Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language Models, arXiv 2401.01286.
    """

    Config: Any = FTMConfig
    name: str = "ft-m"


class FTL(FineTuning):
    """FT-L: fine-tune one projection within a small box, all target tokens scored at the prompt's last position.

        min_D  -1/n sum_t log p(y_t | x; W + D)   with |D_ij| <= clamp

    For a target of several tokens this asks one position to give them all; it is kept for comparison. For a target of
    one token, and without a clamp, it is FT-M.

    Papers: Zhu et al., arXiv 2012.00363; as the baseline of ROME, Meng et al., NeurIPS 2022, arXiv 2202.05262.
    """

    Config: Any = FTLConfig
    name: str = "ft-l"
    place: Place = "last_position"


class LocFTBF(FineTuning):
    """LocFT-BF: fine-tune one well-chosen projection on all facts together, in mini-batches over many passes.

        for each pass: shuffle; for each mini-batch B: one step of Adam on 1/|B| sum_{i in B} 1/n_i sum_t -log p(y_it),
        skipped where this is below 0.01; stop when the mean of a pass is

    The target ends with the end token, so that stopping is learned too. It needs all facts at once: a later batch is
    trained on top of the earlier ones, which may be forgotten.

    Paper: LocFT-BF, ICLR 2026, arXiv 2509.22072.
    """

    Config: Any = LocFTBFConfig
    name: str = "locft-bf"
    order_matters: bool = False
    depth: float = 0.85


@dataclass(frozen=True, slots=True)
class DenseChange:
    """y + x D^T at each projection, D within [-bound, bound]."""

    D: Mapping[str, Float[Tensor, "d_out d_in"]]
    bound: float | None

    @classmethod
    def zero(cls, lm: LM, paths: Sequence[str], clamp: float | None) -> "DenseChange":
        """No change yet.

        Raises:
            RetconError: the clamp leaves no room.
        """
        if clamp is not None and not clamp > 0:
            raise RetconError(f"a clamp of {clamp:g} leaves no room; give one above zero, or none")
        D = {}
        for path in paths:
            module, shape, _ = projection(lm.model, path)
            device = next(module.parameters()).device
            D[path] = torch.zeros(shape, dtype=trained_dtype(lm), device=device, requires_grad=True)
        return cls(D, None if clamp is None else _below(clamp))

    @property
    def leaves(self) -> Sequence[Tensor]:
        """The matrices."""
        return list(self.D.values())

    def entries(self) -> Mapping[str, Entry]:
        """The matrices, as changes of their projections."""
        return {path: Dense(D) for path, D in self.D.items()}

    def confine(self) -> None:
        """Clamp every entry."""
        if self.bound is not None:
            with torch.no_grad():
                for D in self.D.values():
                    D.clamp_(-self.bound, self.bound)


def default_layer(lm: LM, depth: float) -> int:
    """The layer at a share of the depth: at 0.7, 20 of SmolLM2-135M's 30 layers and 22 of 32; at 0.85, 25 and 26.

    LocFT-BF's choices are 22 of Llama-3-8B's 32 layers, 23 of Mistral-7B's, but 6 of Qwen2.5-7B's 28; of
    SmolLM2-135M's, 25 was the best of four. FT's is 21 for most models of 32. For models that have not been measured
    the rule is a start, not a tuned choice.
    """
    return round(depth * (lm.arch.n_layers - 1))


def trained_dtype(lm: LM) -> torch.dtype:
    """Changes are trained in fp32, or in fp64 where the model is."""
    return torch.promote_types(lm.dtype, torch.float32)


def _below(clamp: float) -> float:
    """The greatest fp32 number that is not above `clamp`, so that a patch in fp32 keeps to it exactly."""
    bound = torch.tensor(clamp, dtype=torch.float32)
    return float(bound if bound.double() <= clamp else torch.nextafter(bound, torch.zeros_like(bound)))


def _facts(lm: LM, edits: Sequence[Edit], entries: Mapping[str, Entry], trained: Trained) -> list[dict[str, Any]]:
    """One record a fact: its evaluations, its last loss, and its target's probability once all are trained.

    The probability is the geometric mean over the target's tokens after the bare prompt; what a later fact has
    overwritten shows in it.
    """
    texts = [lm.render(edit.text) for edit in edits]
    items = [
        (tokens.encode(lm, text), [tokens.target_ids(lm, text, edit.target)])
        for text, edit in zip(texts, edits, strict=True)
    ]
    with ExitStack() as stack:
        for path, entry in entries.items():
            stack.enter_context(patch.hooked(lm.module(path), entry))
        scored = forward.score(lm, items)
    probabilities = [math.exp(sum(found.logprobs) / len(found.logprobs)) for (found,) in scored]
    columns = zip(trained.evaluations.tolist(), trained.loss.tolist(), probabilities, strict=True)
    return [
        {"evaluations": evaluations, "loss": round(loss, 5), "probability": round(probability, 5)}
        for evaluations, loss, probability in columns
    ]
