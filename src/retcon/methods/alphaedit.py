"""AlphaEdit: changes only in the null space of ordinary keys, so that those are left alone (arXiv 2410.02355)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import patch, solve, stats, storage
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.family import LocateAndEditConfig, Problem
from retcon.methods.locate_and_edit import LocateAndEdit

__all__ = ["AlphaEdit", "AlphaEditConfig"]

_ENOUGH = 10
"""Tokens for each dimension of a key below which a null space is in part made by their scarcity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaEditConfig(LocateAndEditConfig):
    """Options of AlphaEdit."""

    l2: float = 10.0
    """L2: the ridge inside the null space; published: 10, or 1 for some models."""
    null_space: solve.NullSpaceRule = "leakage"
    """How the null space is told from the rest: by the share of ordinary keys that it holds (`leakage`), by eigenvalues
    of the second moment below a bound (`absolute`, as published, or `relative` to the greatest), or by the share of its
    trace that they make up (`energy`)."""
    threshold: float = 0.1
    """The bound of that rule; published: 2e-2, `absolute`, which depends on the size of a model's activations."""
    few_tokens: bool = False
    """Whether statistics of fewer than ten tokens for each dimension of a key will do."""


@dataclass(frozen=True, slots=True)
class _Space:
    """What is known of one projection before anything is written."""

    basis: Float[Tensor, "d_k r"]
    """U0."""
    leakage: float
    """Share of ordinary keys that it holds."""


class AlphaEdit(LocateAndEdit):
    """AlphaEdit: facts written in the null space of ordinary keys only; made for many batches in sequence.

        C = U diag(s) U^T,   U0 = its directions that ordinary keys leave free,   Kt = U0^T K
        Delta = share * R Kt^T (U0^T (K_p K_p^T + K_r K_r^T) U0 + L2 I + Kt Kt^T)^{-1} U0^T

    K_p are the keys of earlier batches, which travel in the patch. K_r are those of the texts to retain, and of the
    model's own answers to them, at all their tokens on the unedited model: each counts like a key of an earlier batch
    (`retain_weight`), so that these texts keep their outputs at the edited projections up to the ridge. Where there are
    no statistics (C = I) no direction is freer than another, and U0 = I. The patch's info tells, for each layer, how
    many directions are free, and the leakage: the mean of |U0^T k|^2 / |k|^2 over ordinary keys that C was not made of.

    Paper: Fang et al., AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models, ICLR 2025,
    arXiv 2410.02355.
    """

    Config: Any = AlphaEditConfig
    name = "alphaedit"

    def __init__(self, config: AlphaEditConfig | None = None) -> None:
        super().__init__(config)
        self._found: dict[str, tuple[Tensor, float]] = {}
        """Bases and their leakage in the last call, by content: batches in sequence share them."""

    def prepare(
        self,
        lm: LM,
        paths: Sequence[str],
        known: Mapping[str, stats.Moments],
        notes: dict[str, Any],
    ) -> Mapping[str, _Space]:
        """The null space of each projection."""
        for path, moments in known.items():
            needed = _ENOUGH * len(moments.second)
            if moments.count < needed and not self.config.few_tokens:
                raise RetconError(
                    f"{path}: {moments.count} tokens of statistics are too few to find a null space, which takes "
                    f"{needed}; give more text, or set few_tokens"
                )
        found = self._bases(lm, paths, known)
        spaces = {path: _Space(*found[path]) for path in paths}
        notes["null_space"] = {
            path: {"directions": space.basis.shape[1], "of": len(space.basis), "leakage": round(space.leakage, 6)}
            for path, space in spaces.items()
        }
        return spaces

    def rule(self, problem: Problem) -> solve.Factors:
        """The ridge regression inside the null space."""
        space: _Space = problem.extra
        basis = space.basis.to(problem.keys.device)
        return solve.null_space_ridge(problem.keys, problem.residuals, basis, self.config.l2, problem.past)

    def _bases(
        self, lm: LM, paths: Sequence[str], known: Mapping[str, stats.Moments]
    ) -> dict[str, tuple[Tensor, float]]:
        """U0 and its leakage, by path."""
        config = self.config
        if not known:
            everything = torch.eye(lm.arch.d_mlp, dtype=torch.float64)
            return dict.fromkeys(paths, (everything, 1.0))
        state = storage.digest(lm.fingerprint(), [item.id for item in patch.active(lm.model)], asdict(config))
        names = {path: storage.digest(state, path, known[path].provenance) for path in paths}
        missing = [path for path in paths if names[path] not in self._found]
        if missing:
            unseen = stats.held_out(
                lm, missing, config.statistics, tokens_wanted=config.statistics_tokens, seed=config.seed
            )
            for path in missing:
                self._found[names[path]] = self._basis(path, known[path], unseen[path])
        self._found = {name: self._found[name] for name in names.values()}
        return {path: self._found[names[path]] for path in paths}

    def _basis(self, path: str, moments: stats.Moments, unseen: Float[Tensor, "d_k n"]) -> tuple[Tensor, float]:
        try:
            basis = solve.null_space(moments.second, self.config.threshold, self.config.null_space, unseen)
        except ValueError as error:
            raise RetconError(f"{path}: {error}") from error
        return basis, solve.leakage(basis, unseen)
