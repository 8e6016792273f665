"""EAMET: targets whose similarities follow those of the keys, so that one solve holds many facts (arXiv 2505.11876)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import solve, stats, targets, templates, values
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.alignment import Alignment, Terms, misalignment, unit
from retcon.methods.alphaedit import AlphaEdit
from retcon.methods.family import LocateAndEditConfig, Problem
from retcon.methods.locate_and_edit import LocateAndEdit
from retcon.methods.memit import MEMIT
from retcon.patch import LowRank, Patch
from retcon.requests import Edit, tied
from retcon.sweep import Sweep
from retcon.targets import Store
from retcon.values import Found, FromBase, SearchConfig

__all__ = ["EAMET", "EAMETConfig"]

_WORDS = (
    "The", "Therefore", "Because", "I", "You", "However", "Also", "Nevertheless", "He", "It", "Can", "Because",
)  # fmt: skip
"""First words of the published templates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EAMETConfig(LocateAndEditConfig):
    """Options of EAMET."""

    solver: Literal["memit", "alphaedit"] = "memit"
    """Whose closed form writes the targets; `ridge` is MEMIT's, the four after it are AlphaEdit's."""
    ridge: float | None = None
    """lambda: the number of ordinary keys that C stands for; by default five for each fact, and 1000 at least.
    Published: 4000 to 15000."""
    l2: float = 10.0
    """The ridge inside the null space; published with alignment: 1."""
    null_space: solve.NullSpaceRule = "leakage"
    """How the null space is told from the rest, as in `alphaedit`."""
    threshold: float = 0.1
    """The bound of that rule."""
    few_tokens: bool = False
    """Whether statistics of fewer than ten tokens for each dimension of a key will do."""
    align_kl: float = 2.0
    """Weight of the divergence between the similarities of shifts and of keys."""
    align_mse: float = 8.0
    """Weight of their squared difference."""
    temperature: float = 0.07
    """tau: by what similarities are divided before the softmax."""
    top: int = 50
    """M: how many of the most similar keys the squared difference is taken over."""
    kl_direction: Literal["code", "paper"] = "code"
    """KL(P_k || P_r), as released, or KL(P_r || P_k), as the paper writes."""
    mse_form: Literal["code", "paper"] = "code"
    """Of cosines, weighted by the keys' softmax, as released; or of softmaxed values, each counting the same."""
    mode: Literal["blocks", "two_pass"] = "blocks"
    """`blocks`: facts align to those before them; `two_pass` [ours]: to the shifts of a first search without alignment,
    which is another fixed point."""
    block: int = 1
    """Facts searched in lock step; 1 is the published order, one fact after the other."""
    init: Literal["key", "state", "zero"] = "key"
    """Where a shift starts: along h0, as long as the key, or as long as h0; or nowhere."""
    sink: float = 100.0
    """|h0| from which on a shift starts nowhere all the same: of an attention sink the direction says nothing."""
    clamp_to: Literal["key", "state"] = "state"
    """What `clamp` is in units of: the length of the key, as published, or |h0|. Keys may be much shorter than states,
    and a shift of a few of their lengths then reaches no answer."""
    clamp: float = 0.75
    """Longest delta, in units of `clamp_to`; published: 1.5 to 4.5 lengths of the key."""
    published_templates: bool = False
    """Twelve templates of eleven tokens, sampled as published, in place of `templates` and `template_length`."""
    stop: float = 5e-2
    """Loss, the penalty included, at which a fact is finished; published: 0.01."""
    earliest_stop: int = 1
    """Evaluation, counted from 0, before which no fact is finished."""
    rounds: int = 2
    """How often targets are sought and written; from the second round on without alignment. Published: 1."""


_SOLVERS: dict[str, type[LocateAndEdit]] = {"memit": MEMIT, "alphaedit": AlphaEdit}


@dataclass(slots=True)
class _Call:
    """What one call of `edit` finds out besides the patch."""

    misalignment: list[float] = field(default_factory=list)
    """A(i) of each fact, in its first round, at the last layer that was searched."""


class EAMET(LocateAndEdit):
    """EAMET: targets aligned to one another as their keys are, then the solve of MEMIT or AlphaEdit.

        J_i(delta) = NLL + kl * KL + align_kl * KL(P_k || P_r)
                   + align_mse * sum_j w_j (cos(k_i, k_j) - cos(delta_i, delta_j))^2

    over the facts j before i, with P the softmax of the cosines over tau; kl * KL is the essence term of the search.
    Shifts start along h0, as long as the fact's key. Then, layer by layer, the solver's change, which is by default
    MEMIT's: share * R K^T (lambda C + K_p K_p^T + K K^T)^{-1}.

    Paper: EAMET, ICLR 2026, arXiv 2505.11876.
    """

    Config: Any = EAMETConfig
    name = "eamet"
    order_matters = True
    folds: bool = False
    """Targets depend on those of earlier facts, and all are written together."""

    def __init__(self, config: EAMETConfig | None = None) -> None:
        super().__init__(config)
        _check(self.config)
        kind = _SOLVERS[self.config.solver]
        known = self.config.__dataclass_fields__
        shared = {item.name: getattr(self.config, item.name) for item in fields(kind.Config) if item.name in known}
        self._solver: LocateAndEdit = kind(kind.Config(**shared))
        self._call = _Call()

    def begun(self) -> Self:
        """A copy with room for the misalignment."""
        one = copy.copy(self)
        one._call = _Call()
        return one

    def finished(self, made: Patch) -> Patch:
        """The patch, whose info says how misaligned the targets are."""
        return replace(made, info=_told(made.info, self._call.misalignment, self.config.temperature))

    def prepare(
        self,
        lm: LM,
        paths: Sequence[str],
        known: Mapping[str, stats.Moments],
        notes: dict[str, Any],
    ) -> Mapping[str, Any]:
        """What the solver prepares."""
        return self._solver.prepare(lm, paths, known, notes)

    def rule(self, problem: Problem) -> solve.Factors:
        """The solver's."""
        return self._solver.rule(problem)

    def texts(self, lm: LM) -> tuple[str, ...]:
        """The templates of the family, or the published ones."""
        if not self.config.published_templates:
            return super().texts(lm)
        return templates.written(lm, _WORDS, length=11, temperature=0.5, top_k=100, top_p=0.9, seed=self.config.seed)

    def find(
        self,
        lm: LM,
        edits: Sequence[Edit],
        search: SearchConfig,
        texts: Sequence[str],
        stores: Sequence[Store],
        written: Sequence[LowRank],
    ) -> tuple[Found, int]:
        """Aligned targets, block by block; in later rounds, those of what the model does not hold yet, unaligned."""
        if len(written) >= len(self.layers(lm)):
            return targets.find(lm, edits, search, texts, stores, written=written)
        wide = torch.promote_types(lm.dtype, torch.float32)
        order = [i for unit in tied(edits) for i in unit]
        lined_up = [edits[i] for i in order]
        with Sweep(lm, lined_up, texts, [search.layer], bare_weight=self.bare_weight) as sweep:
            keys = sweep.read(search.layer, search.layer).keys.to(wide)
        work = _Blocks(self.config, lm, lined_up, search, texts, stores, written, keys, self.bare_weight)
        found, cached = work.two_passes() if self.config.mode == "two_pass" else work.in_order()
        apart = misalignment(keys, found.delta, temperature=self.config.temperature)
        place = sorted(range(len(order)), key=order.__getitem__)
        self._call.misalignment = apart[place].tolist()
        return found.only(place), cached


def _check(config: EAMETConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        RetconError: naming the option.
    """
    if config.solver not in _SOLVERS:
        raise RetconError(f"there is no solver {config.solver!r}; use one of {', '.join(_SOLVERS)}")
    for name in ("block", "top"):
        if getattr(config, name) < 1:
            raise RetconError(f"{name} is {getattr(config, name)}; it must be 1 or more")
    if not config.temperature > 0:
        raise RetconError(f"temperature is {config.temperature:g}; it must be above 0")


@dataclass(slots=True)
class _Blocks:
    """The search of all facts at one layer; those of one tie follow one another."""

    config: EAMETConfig
    lm: LM
    edits: Sequence[Edit]
    search: SearchConfig
    texts: Sequence[str]
    stores: Sequence[Store]
    written: Sequence[LowRank]
    keys: Float[Tensor, "N d_k"]
    bare_weight: float

    def in_order(self) -> tuple[Found, int]:
        """Each block aligned to those before it, and within itself."""
        penalty = self._penalty(live=True)
        return self._run("aligned", penalty, self.config.block, lambda span, found: penalty.keep(span, found.delta))

    def two_passes(self) -> tuple[Found, int]:
        """All facts without alignment, then again, aligned to the result; `block` plays no part."""
        first, _ = self._run("first pass", None, targets.BATCH, lambda _span, _found: None)
        penalty = self._penalty(live=False)
        penalty.keep(range(len(self.edits)), first.delta)
        return self._run("second pass", penalty, targets.BATCH, lambda _span, _found: None)

    def _penalty(self, *, live: bool) -> Alignment:
        chosen = {item.name: getattr(self.config, item.name) for item in fields(Terms)}
        units = torch.tensor([number for number, unit in enumerate(tied(self.edits)) for _ in unit])
        return Alignment(self.keys, self.lm.arch.d_model, Terms(**chosen), live=live, units=units)

    def _run(
        self, kind: str, penalty: Alignment | None, block: int, settled: Callable[[Sequence[int], Found], None]
    ) -> tuple[Found, int]:
        config = self.config

        def seek(span: Sequence[int], advance: Callable[[float], None]) -> Found:
            lengths = self.keys[span[0] : span[-1] + 1].norm(dim=1)
            if penalty is not None:
                penalty.begin(span)
            return values.search(
                self.lm,
                [self.edits[i] for i in span],
                self.search,
                self.texts,
                penalty=penalty,
                start=_start(config, lengths),
                radius=_radius(config, lengths),
                numbers=span,
                advance=advance,
            )

        terms = [getattr(config, item.name) for item in fields(Terms)]
        options = [kind, *(terms if penalty else []), config.init, config.sink, config.clamp_to, self.bare_weight]
        return targets.find_in_order(
            self.lm, self.edits, self.search, self.texts, self.stores, seek, settled,
            block=block, options=options, written=self.written,
        )  # fmt: skip


def _start(config: EAMETConfig, lengths: Float[Tensor, " n"]) -> FromBase | None:
    """Where shifts start; None for nowhere."""
    if config.init == "zero":
        return None

    def start(base: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        size = base.norm(dim=1)
        length = torch.where(size < config.sink, lengths.to(base) if config.init == "key" else size, 0.0)
        return length[:, None] * unit(base)

    return start


def _radius(config: EAMETConfig, lengths: Float[Tensor, " n"]) -> FromBase | None:
    """How long shifts may be; None for `clamp` * |h0|."""
    return (lambda _base: config.clamp * lengths) if config.clamp_to == "key" else None


def _told(info: Any, apart: Sequence[float], temperature: float) -> dict[str, Any]:
    """The info of a patch, with the misalignment of each fact and of all."""
    if not apart:
        return dict(info)
    all_of_them = torch.tensor(apart, dtype=torch.float64)
    levels = (0.1, 0.5, 0.9)
    at = torch.quantile(all_of_them, torch.tensor(levels, dtype=torch.float64)).tolist()
    summary = {
        "temperature": temperature,
        "mean": round(float(all_of_them.mean()), 4),
        "quantiles": {str(level): round(value, 4) for level, value in zip(levels, at, strict=True)},
    }
    facts = [{**fact, "misalignment": round(a, 4)} for fact, a in zip(info["facts"], apart, strict=True)]
    return {**info, "misalignment": summary, "facts": facts}
