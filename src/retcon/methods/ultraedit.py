"""UltraEdit: no subject, no statistics, no search; a ridge regression on normalised gradients (arXiv 2505.14679)."""

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import patch, progress, solve
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods.family import edited_layers
from retcon.methods.gradients import Answers, read_answers
from retcon.methods.mlp_sites import Site, mlp_paths, refusal
from retcon.methods.record import as_patch, clock, is_on, joined, refuse_none, refuse_texts
from retcon.patch import LowRank, Patch
from retcon.patch.base import projection
from retcon.precision import Precision
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["Normaliser", "UltraEdit", "UltraEditConfig"]

_HUGE = 30
"""Fall of the loss, to first order and in units of itself, above which a warning is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UltraEditConfig:
    """Options of UltraEdit."""

    layers: tuple[int, ...] | None = None
    """Layers to edit; by default the five below the last one."""
    sites: tuple[Site, ...] = ("mlp_out",)
    """Projections to edit in each: `mlp_in` (gate and up, or the one there is), `mlp_out` (down)."""
    lr: float = 1.2e-3
    """eta: at an answer a projection's output moves by about eta * d_in of its normalised gradient. Chosen for the
    default model; published for models of 7B and more: 1e-6."""
    ridge: float = 1.0
    """Weight of the change's own size; more leaves other inputs alone, less meets the edits."""
    turn: int = 100
    """Edits that are computed on the same model and written together."""
    averaging: Literal["none", "micro_batch"] = "none"
    """The loss is a sum over answer tokens, so that a token weighs the same in every turn and the order of a turn
    changes nothing; or, as released, a mean over those of each micro-batch."""
    micro_batch: int = 10
    """Edits of one micro-batch, for `averaging` and `released_var`."""
    prior: float = 100.0
    """Imagined rows, with mean zero and one variance for all coordinates, that the normaliser begins with, so that the
    first edits have statistics too; published: 0."""
    eps: float = 1e-8
    """Added to standard deviations."""
    released_var: bool = False
    """Merge variances as the released code does, which makes them too large by a micro-batch's share of one row."""
    precision: Precision = "float32"
    """Dtype of the forward's and backward's matrix products; statistics and solve are fp64."""


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and spread of all rows x = [h; g] that modules of one shape have seen, over all turns.

    Kept as sums in fp64, so that in `patch + patch` those of both simply add.
    """

    sums: Float[Tensor, "3 d"]
    """The number of rows (in every column), their sum, and the sum of their squares."""

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "Normaliser":
        """One that has seen nothing."""
        return cls(torch.zeros(3, width, dtype=torch.float64, device=device))

    def seen(self, rows: Float[Tensor, "n d"], *, batches: Sequence[int] | None = None) -> "Normaliser":
        """With these rows too.

        Args:
            rows: what a module read and the gradient at what it wrote.
            batches: lengths of the micro-batches, to merge their unbiased variances as if they were biased ones, as
                the released code does: each then counts for b / (b - 1) of what it is.
        """
        rows = rows.double()
        squares = rows.square().sum(0)
        for part in () if batches is None else rows.split(list(batches)):
            squares = squares + part.var(0)  # b var_unbiased - b var_biased
        count = torch.full_like(squares, len(rows))
        return Normaliser(self.sums + torch.stack([count, rows.sum(0), squares]))

    def statistics(self, parts: Sequence[int], prior: float) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and standard deviation (unbiased) of each coordinate.

        Args:
            parts: widths of h and g, which have one variance each in the prior.
            prior: number of imagined rows.
        """
        count, total, squares = self.sums
        if prior:
            pooled = [part.mean().expand_as(part) for part in (squares / count.clamp_min(1)).split(list(parts))]
            count, squares = count + prior, squares + prior * torch.cat(pooled)
        mean = total / count
        return mean, ((squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)).sqrt()


class UltraEdit:
    """UltraEdit: any prompt with its answer by one forward and backward, turn after turn, by running statistics.

    For each edited projection, h is what it reads and g the gradient of the answers' loss at what it writes, one row
    for each answer token, where it is predicted. Rows x = [h; g] are normalised by the mean and spread
    of all rows so far:

        x^ = (x - mean) / (std + eps),   v = -eta |h^|^2 g^,   Delta = V^T (H H^T + ridge I)^{-1} H

    H holds the rows h as they are, V the rows v. So a projection moves against the normalised gradient where it reads
    what it reads at the answers, and as little as a ridge allows elsewhere. Edits are made in turns, all projections of
    a turn together, each turn on the model that the earlier ones left. Modules of one shape share their statistics,
    which travel in the patch.

    Paper: Gu et al., UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models, TMLR 2026,
    arXiv 2505.14679.
    """

    Config: Any = UltraEditConfig
    name: str = "ultraedit"
    order_matters: bool = False
    uses_retain: bool = False
    normaliser: type[Normaliser] = Normaliser
    """The statistics that rows are normalised by; a subclass may have others."""

    def __init__(self, config: UltraEditConfig | None = None) -> None:
        self.config = config or UltraEditConfig()

    def unsupported(self, lm: LM) -> str | None:
        """Why a model cannot be edited; None where it can."""
        return refusal(lambda: self.paths(lm))

    def paths(self, lm: LM) -> list[str]:
        """Module paths of the edited projections, from below.

        Raises:
            RetconError: a layer is not there, or no site is named.
            UnsupportedModel: a layer's MLP has no projections that read the residual stream.
        """
        layers = _window(lm) if self.config.layers is None else edited_layers(lm, self.config.layers)
        return mlp_paths(lm, layers, self.config.sites)

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Edit all facts, turn by turn; with `state`, on top of that patch, which the result then contains.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: not used by this method.
            state: the patch to go on from; its statistics go on too.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a target has no token.
            RetconError: there is no edit, the layers are not there, or an option makes no sense.
            UnsupportedModel: the model's MLPs have no such projections.
        """
        refuse_none(edits)
        if min(self.config.turn, self.config.micro_batch) < 1:
            raise RetconError("turn and micro_batch count edits; give at least 1")
        paths = self.paths(lm)
        refuse_texts(lm, state)
        held = is_on(lm, state)
        written: dict[str, LowRank] = {}
        infos = []
        with progress.task("facts", len(edits)) as advance:
            for start in range(0, len(edits), self.config.turn):
                part = edits[start : start + self.config.turn]
                with ExitStack() as stack:
                    if held:  # the caller runs the state; what came on top of it is ours to run
                        for path, entry in written.items():
                            stack.enter_context(patch.hooked(lm.module(path), entry))
                    elif state is not None:
                        stack.enter_context(state.on(lm.model))
                    state, entries = self._turn(lm, part, paths, state)
                infos.append(state.info)
                for path, entry in entries.items() if held else ():
                    written[path] = cast(LowRank, patch.combine(written[path], entry)) if path in written else entry
                advance(len(part))
        assert state is not None
        return replace(state, info=joined(infos)) if len(infos) > 1 else state

    def _turn(
        self, lm: LM, edits: Sequence[Edit], paths: Sequence[str], state: Patch | None
    ) -> tuple[Patch, dict[str, LowRank]]:
        """One turn on the model as it stands, and the changes it adds."""
        config = self.config
        seconds = clock()
        begun = time.perf_counter()
        micro = config.micro_batch if config.averaging == "micro_batch" else None
        answers = read_answers(lm, edits, paths, micro_batch=micro, precision=config.precision)
        seconds["targets"] = time.perf_counter() - begun
        rows = {path: torch.cat([answers.inputs[path], answers.gradients[path]], 1).double() for path in paths}
        shapes = {path: projection(lm.model, path)[1] for path in paths}
        known = {shape: self._remembered(shape, state, lm.device) for shape in dict.fromkeys(shapes.values())}
        batches = self._batches(answers)
        for path, shape in shapes.items():
            known[shape] = known[shape].seen(rows[path], batches=batches)
        entries = {path: self._solved(path, rows[path], known[shape], shape) for path, shape in shapes.items()}
        fall = _fall(answers, entries)
        if fall > _HUGE:
            warnings.warn(
                f"to first order the edits' loss falls by {fall:.0f} times itself, so this update is huge and may "
                f"disable the model; give a smaller lr than {config.lr:g}",
                RetconWarning,
                stacklevel=3,
            )
        seconds["solve"] = time.perf_counter() - begun - seconds["targets"]
        memory = {_name(shape): item.sums for shape, item in known.items()}
        info = {"targets_cached": 0, "first_order_fall": round(fall, 3), "facts": _facts(answers, len(edits))}
        return as_patch(lm, self.name, config, edits, entries, state, memory, seconds, info), entries

    def _remembered(self, shape: tuple[int, int], state: Patch | None, device: torch.device) -> Normaliser:
        """The statistics of a shape from the state; none seen where it has none."""
        if state is None or _name(shape) not in state.state:
            return self.normaliser.empty(sum(shape), device)
        return self.normaliser(state.state[_name(shape)].to(device))

    def _batches(self, answers: Answers) -> list[int] | None:
        """Answer tokens of each micro-batch, where the variances are to be merged as released.

        Raises:
            RetconError: a micro-batch has one token and so no unbiased variance; the released code then gives NaN.
        """
        if not self.config.released_var:
            return None
        counts = torch.bincount(answers.owner // self.config.micro_batch).tolist()
        if 1 in counts:
            raise RetconError("released_var needs two answer tokens in each micro-batch; leave it out, or edit more")
        return counts

    def _solved(self, path: str, rows: Tensor, normaliser: Normaliser, shape: tuple[int, int]) -> LowRank:
        """The change of one projection from its rows."""
        d_out, d_in = shape
        mean, std = normaliser.statistics((d_in, d_out), self.config.prior)
        inputs, gradients = ((rows - mean) / (std + self.config.eps)).split([d_in, d_out], 1)
        values = -self.config.lr * inputs.square().sum(1, keepdim=True) * gradients
        try:
            factors = solve.plain_ridge(rows[:, :d_in].T, values.T, self.config.ridge)
        except ValueError as error:
            raise RetconError(f"{path}: {error}") from error
        return LowRank(factors.U.float(), factors.V.float())


def _window(lm: LM) -> range:
    """Up to five layers that end below the last one, and leave out the first."""
    last = max(lm.arch.n_layers - 2, 0)
    return range(max(last - 4, min(1, last)), last + 1)


def _name(shape: tuple[int, int]) -> str:
    """What a shape's statistics are called in a patch's state; such names are added in a sum of patches."""
    return f"sum.ultraedit.{shape[0]}x{shape[1]}"


def _fall(answers: Answers, entries: Mapping[str, LowRank]) -> float:
    """How far the loss falls to first order, all projections together, in units of itself."""
    fall = 0.0
    for path, entry in entries.items():
        moved = (answers.inputs[path] @ entry.V.to(answers.losses)) @ entry.U.to(answers.losses).T
        fall -= float((moved * answers.gradients[path]).sum())
    return fall / max(float((answers.losses * answers.weights).sum()), 1e-12)


def _facts(answers: Answers, n: int) -> list[dict[str, Any]]:
    """One record an edit: answer tokens, and their mean loss before its turn."""
    counts = torch.bincount(answers.owner, minlength=n)
    totals = torch.zeros(n, dtype=torch.float64).index_add_(0, answers.owner, answers.losses.double().cpu())
    pairs = zip(counts.tolist(), (totals / counts).tolist(), strict=True)
    return [{"tokens": count, "loss": round(loss, 5)} for count, loss in pairs]
