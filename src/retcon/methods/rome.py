"""ROME: one fact by a rank-one change of one layer (Meng et al., arXiv 2202.05262; Gupta et al., arXiv 2403.07175)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from retcon import progress, solve
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods.family import LocateAndEditConfig, Problem, metric
from retcon.methods.locate_and_edit import LocateAndEdit
from retcon.methods.record import joined, unedited
from retcon.patch import Patch
from retcon.requests import Edit, tied
from retcon.targets import Store

__all__ = ["ROME", "ROMEConfig"]

_FLAT = 1e-2
_MANY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ROMEConfig(LocateAndEditConfig):
    """Options of ROME."""

    templates: int = 5
    """Texts, written by the model, that the prompt must hold after; besides the bare prompt. Published: 20."""
    bare_weight: float | None = 0.5
    """Share of the bare prompt in the averaged key; None: each prompt counts the same, as published. A key at the very
    start of a text is unlike all others, and a model without a start token meets the fact there: counted as one of
    many, it is hardly written to."""
    lr: float = 0.3
    """Length of a step in units of |h0|, h0 being the projection's output, which is shorter than a layer's state; for
    `adam` its learning rate (published: 0.5)."""
    clamp: float = 4.0
    """Longest delta, in units of that |h0|; as published."""
    variant: Literal["r-rome", "rome"] = "r-rome"
    """`r-rome` uses the averaged key throughout; `rome`, as first published, divides by the bare key's product."""


class ROME(LocateAndEdit):
    """ROME: one fact at a time by a rank-one change of one layer.

        u = C^{-1} k_bar,   Delta = (v* - o(k_bar)) u^T / (k_bar . u)            (r-ROME, the default)
        Delta = (v* - o(k)) u^T / (k . u)                                         (ROME as first published)

    k is the subject's key under the bare prompt, k_bar its mean over the templates, o the projection's output, and
    v* = v + delta the target found. The second form mixes two keys in its quotient, which at times gives a huge,
    disabling update (arXiv 2403.07175). Several facts are edited one after the other, each on top of those before it;
    those of one tie together, by one change for the means of their keys and their targets.

    Paper: Meng, Bau, Andonian, Belinkov, Locating and Editing Factual Associations in GPT, NeurIPS 2022,
    arXiv 2202.05262.
    """

    Config: Any = ROMEConfig
    name = "rome"
    order_matters = True
    uses_retain: bool = False
    site = "module_out"
    remembers = False

    def __init__(self, config: ROMEConfig | None = None) -> None:
        super().__init__(config)
        asked = self.config.bare_weight
        self.bare_weight = 1 / (self.config.templates + 1) if asked is None else asked

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The one layer to edit: the last of those that the family would."""
        layers = super().layers(lm)
        if self.config.layers is not None and len(layers) > 1:
            raise RetconError(f"ROME edits one layer; name one of {list(layers)}")
        return layers[-1:]

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Edit the facts one after the other, each on top of those before it; else as `LocateAndEdit.edit`."""
        units = tied(edits)
        if len(units) > _MANY:
            warnings.warn(
                f"ROME edits one fact after the other and the model wears out after tens; for {len(units)} use memit",
                RetconWarning,
                stacklevel=2,
            )
        if len(units) <= 1:
            return super().edit(lm, edits, state=state, stores=stores)
        infos = []
        # each patch contains those before it, the caller's included, which thus must not stand beside it
        with unedited(lm, state), progress.task("facts", len(edits)) as advance:
            for unit in units:
                state = super().edit(lm, [edits[i] for i in unit], state=state, stores=stores)
                infos.append(state.info)
                advance(len(unit))
        return replace(cast(Patch, state), info=joined(infos))

    def rule(self, problem: Problem) -> solve.Factors:
        """The rank-one change, by the variant asked for; the columns of a tie count as their mean."""
        key = problem.keys.mean(1)
        bare = problem.reading.bare_keys.mean(0)
        now = problem.reading.outputs.mean(0)
        wanted = now + problem.residuals.mean(1)
        geometry = metric(problem, 1.0)
        if self.config.variant == "r-rome":
            averaged = problem.lm.projection(problem.layer)(key.to(problem.lm.dtype)[None])[0].double()
            factors, cosine = solve.rank_one(key, wanted - averaged, geometry)
        else:
            factors, cosine = solve.rank_one(key, wanted - now, geometry)
            direction = factors.V[:, 0]
            factors = solve.Factors(factors.U * ((key @ direction) / (bare @ direction)), factors.V)
            cosine = float((bare @ direction) / (bare.norm() * direction.norm()).clamp_min(1e-300))
        if abs(cosine) < _FLAT:
            warnings.warn(
                f"the key and its direction are almost at right angles (cosine {cosine:.1e}), so this update is huge "
                "and may disable the model; give more statistics_tokens or another layer",
                RetconWarning,
                stacklevel=2,
            )
        return factors
