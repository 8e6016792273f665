"""ECE as the paper describes it, in our reconstruction: explain, cluster, edit (doi 10.1145/3696410.3714835)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retcon import patch, solve, stats, targets
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import explained, record, warm
from retcon.methods.ece_released import neuron_state, restricted
from retcon.methods.explained import ECEConfig, Piece
from retcon.methods.family import Problem, edited_layers, ordinary_keys, search_config
from retcon.methods.locate_and_edit import edit_layers, moments
from retcon.methods.memit import MEMIT
from retcon.patch import LowRank, Patch
from retcon.requests import Edit
from retcon.targets import Store
from retcon.values import Found, SearchConfig

__all__ = ["ECE", "ECEConfig"]


class ECE(MEMIT):
    """ECE [our reconstruction]: edits each cluster of like facts on the neurons and layers that hold it.

        1. a_n = k_n dF/dk_n at the subject, F = log p(answer), for each neuron n of each layer looked at
           layers: a fixed window, or the one with the largest sum of |a_n|; neurons: the largest |a_n|, up to a share
        2. J_ij = |N_i n N_j| / |N_i u N_j| of the facts' top neurons; spectral clustering of J
        3. targets of all members by one descent, one gradient step for all; then cluster after cluster, on the model
           as edited so far,  Delta[:, S] = share * R K[S]^T ((lambda C + K_p K_p^T)[S, S] + K[S] K[S]^T)^{-1}

    S are the neurons that hold a share p of the members' summed |a_n|. K_p are the keys of earlier batches and of the
    clusters before; R = Z - H is read when the cluster's turn comes. The paper names these ideas; the released code
    (`ece-released`) has neither clusters nor attributions, so how they are done here is ours.

    Paper: Zhang et al., Explainable and Efficient Editing for Large Language Models, WWW 2025,
    doi 10.1145/3696410.3714835.
    """

    Config: Any = ECEConfig
    name = "ece"

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The fixed window."""
        layers = super().layers(lm)
        return layers if self.config.width is None else edited_layers(lm, self.config.layers, width=self.config.width)

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """As `LocateAndEdit.edit`; clusters, layers and neurons are in the patch.

        Raises:
            RequestError: an edit has no subject.
            RetconError: there is no edit, the layers or options do not fit, or scikit-learn or captum is missing.
        """
        record.refuse_none(edits)
        _check(lm, self.config)
        seconds = dict.fromkeys(("statistics", "attribution", "targets", "solve"), 0.0)
        on = record.is_on(lm, state)
        with record.timed(seconds, "targets"), record.unedited(lm, state):
            texts = ("", *self.texts(lm))
        with ExitStack() as stack:
            stack.enter_context(record.resumed(lm, state))
            with record.timed(seconds, "attribution"):
                plan = explained.plan(lm, edits, self.config, self.layers(lm))
            with record.timed(seconds, "targets"):
                found, cached = _sought(lm, edits, self.config, plan.pieces, texts, stores)
        with record.timed(seconds, "statistics"), record.unedited(lm, state):
            paths = [lm.arch.mlp_out[layer] for layer in _edited(plan.pieces)]
            known, kept = moments(lm, paths, self.config), self.retained(lm, paths, retain)
        # With the state on the model already, what comes next stands on it and must not contain it.
        chain = Patch({}, state.base, (), state.state) if state is not None and on else state
        config = replace(self.config, ridge=ordinary_keys(self.config.ridge, len(edits)))  # of the whole batch
        changes: dict[str, LowRank] = {}
        infos = []
        for piece, wanted in zip(plan.pieces, found, strict=True):
            part = _Part(config, piece, wanted, _Read(texts, known, kept), changes)
            chain = edit_layers(part, lm, [edits[i] for i in piece.facts], state=chain, stores=stores)
            infos.append(chain.info)
        assert chain is not None
        memory = {name: kept for name, kept in chain.state.items() if name.startswith("cat.keys.")}
        memory |= neuron_state({} if state is None else state.state, _columns(lm, plan.pieces))
        told = _told(infos, plan, found, seconds, cached, self.config)
        return record.as_patch(lm, self.name, self.config, edits, changes, state, memory, told.pop("seconds"), told)


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read of the model before the state is on, once for all clusters."""

    texts: tuple[str, ...]
    """Templates; the first is "", the bare prompt."""
    moments: Mapping[str, stats.Moments]
    """Statistics, by module path."""
    kept: Mapping[str, Tensor]
    """Keys of texts to retain, by module path."""


class _Part(MEMIT):
    """One cluster on its way through the engine: with its own layers, neurons and targets."""

    name = "ece"

    def __init__(
        self,
        config: ECEConfig,
        piece: Piece,
        found: Found | None,
        read: _Read,
        changes: dict[str, LowRank],
    ) -> None:
        """Make it.

        Args:
            config: of the whole.
            piece: the cluster.
            found: its targets; None where each layer seeks its own.
            read: what all clusters share.
            changes: where what is written is added, by module path.
        """
        super().__init__(replace(config, statistics="none"))  # they are in `read`
        self.piece, self.found, self.read, self.changes = piece, found, read, changes

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The cluster's own window."""
        return self.piece.layers

    def texts(self, lm: LM) -> tuple[str, ...]:
        """Those of all clusters."""
        return self.read.texts[1:]

    def retained(self, lm: LM, paths: Sequence[str], retain: Sequence[str]) -> Mapping[str, Tensor]:
        """Those of all clusters."""
        return {path: self.read.kept[path] for path in paths if path in self.read.kept}

    def find(
        self,
        lm: LM,
        edits: Sequence[Edit],
        search: SearchConfig,
        texts: Sequence[str],
        stores: Sequence[Store],
        written: Sequence[LowRank],
    ) -> tuple[Found, int]:
        """The targets found before; in later rounds, or where each layer has its own, new ones."""
        if self.found is not None and not written:
            return self.found, 0
        batch = 1 if self.config.batches == "single" else targets.BATCH
        return targets.find(lm, edits, search, texts, stores, batch=batch, written=written)

    def rule(self, problem: Problem) -> solve.Factors:
        """MEMIT's ridge on the cluster's neurons."""
        problem = replace(problem, moments=self.read.moments.get(problem.path))
        if self.config.p >= 1:
            factors = super().rule(problem)
        else:
            chosen = self.piece.neurons[problem.layer].nonzero()[:, 0]
            factors = restricted(problem, problem.ordinary_keys(self.config.ridge), chosen)
        change = LowRank(factors.U.float(), factors.V.float())
        if problem.path in self.changes:
            both = patch.combine(self.changes[problem.path], change)
            assert isinstance(both, LowRank)
            change = both
        self.changes[problem.path] = change
        return factors


def _check(lm: LM, config: ECEConfig) -> None:
    """Refuse options that no model, or not this one, can follow."""
    if (config.width is not None and config.width < 1) or min(config.p, config.cluster_p, config.layer_p) <= 0:
        raise RetconError("width, p, cluster_p and layer_p must be above 0")
    if config.n_clusters is not None and config.n_clusters < 1:
        raise RetconError(f"{config.n_clusters} clusters cannot be made; give n_clusters of 1 or more")
    if not 0 <= config.warm_start < max(config.steps, 1):
        raise RetconError(f"warm_start must be from 0 to {config.steps - 1}, below steps")
    if config.warm_start and config.optimizer != "normalised":
        raise RetconError(f"the steps of a warm start are normalised ones; leave optimizer={config.optimizer} out")
    if config.warm_start and lm.arch.write_gain is None:
        raise RetconError("in this model each layer seeks its own targets, which cannot start together; warm_start=0")


def _edited(pieces: Sequence[Piece]) -> list[int]:
    """All layers that any cluster edits."""
    return sorted({layer for piece in pieces for layer in piece.layers})


def _sought(
    lm: LM,
    edits: Sequence[Edit],
    config: ECEConfig,
    pieces: Sequence[Piece],
    texts: Sequence[str],
    stores: Sequence[Store],
) -> tuple[list[Found | None], int]:
    """The targets of each cluster on the model as it is, and how many of them came from a store."""
    if lm.arch.write_gain is None:
        return [None] * len(pieces), 0
    result: list[Found | None] = []
    cached = 0
    if config.batches == "clusters" or config.warm_start:
        for piece in pieces:
            search = search_config(config, piece.layers[-1], "layer_out")
            members = [edits[i] for i in piece.facts]
            if config.warm_start:
                found, kept = warm.find(lm, members, search, texts, stores, config.warm_start)
            else:
                found, kept = targets.find(lm, members, search, texts, stores)
            result.append(found)
            cached += kept
        return result, cached
    whole: dict[int, tuple[Found, dict[int, int]]] = {}
    batch = 1 if config.batches == "single" else targets.BATCH
    for top in sorted({piece.layers[-1] for piece in pieces}):  # facts of all clusters that end there, in input order
        facts = sorted(i for piece in pieces if piece.layers[-1] == top for i in piece.facts)
        search = search_config(config, top, "layer_out")
        found, kept = targets.find(lm, [edits[i] for i in facts], search, texts, stores, batch=batch)
        whole[top] = found, {fact: place for place, fact in enumerate(facts)}
        cached += kept
    for piece in pieces:
        found, place = whole[piece.layers[-1]]
        result.append(found.only([place[i] for i in piece.facts]))
    return result, cached


def _columns(lm: LM, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """The clusters' neurons by module path, a column for each cluster that edits there; none where all are edited."""
    columns: dict[str, list[Tensor]] = {}
    for piece in pieces:
        for layer, chosen in piece.neurons.items():
            columns.setdefault(lm.arch.mlp_out[layer], []).append(chosen)
    return {path: torch.stack(chosen, 1) for path, chosen in columns.items()}


def _told(
    infos: Sequence[Mapping[str, Any]],
    plan: explained.Plan,
    found: Sequence[Found | None],
    seconds: Mapping[str, float],
    cached: int,
    config: ECEConfig,
) -> dict[str, Any]:
    """What the patch tells: the engine's records in input order, and the explanation."""
    told = record.joined(infos)
    order = [i for piece in plan.pieces for i in piece.facts]
    told["facts"] = [fact for _, fact in sorted(zip(order, told["facts"], strict=True), key=lambda pair: pair[0])]
    told["seconds"] = {**told["seconds"], **{name: told["seconds"].get(name, 0) + s for name, s in seconds.items()}}
    told["targets_cached"] += cached
    told["shared_keys"] = sum(info.get("shared_keys", 0) for info in infos)
    told["reading"] = "our reconstruction of the paper's description"
    told["labels"] = plan.labels
    told["clusters"] = [
        {
            "facts": len(piece.facts),
            "layers": list(piece.layers),
            "neurons": piece.counts,
            "mass": [round(value, 4) for value in piece.mass],
        }
        for piece in plan.pieces
    ]
    whole = [item for item in found if item is not None]
    if whole:
        told["passes"] = _passes(plan.pieces, whole, config)
    return told


def _passes(pieces: Sequence[Piece], found: Sequence[Found], config: ECEConfig) -> dict[str, int]:
    """Forward and backward passes of the first search, by whose targets share one: a pass serves all its members.

    `made` is the way that was chosen. Memory may cut a pass into chunks.
    """
    single: dict[int, int] = {}
    for piece, item in zip(pieces, found, strict=True):
        single |= dict(zip(piece.facts, item.evaluations.tolist(), strict=True))
    tops = sorted({piece.layers[-1] for piece in pieces})
    groups = {
        "clusters": [list(piece.facts) for piece in pieces],
        "together": [sorted(i for piece in pieces if piece.layers[-1] == top for i in piece.facts) for top in tops],
    }
    most = len(single) if config.warm_start else targets.BATCH
    passes = {"single": sum(single.values())}
    for name, parts in groups.items():
        cut = [part[at : at + most] for part in parts for at in range(0, len(part), most)]
        passes[name] = sum(max(single[i] for i in part) for part in cut)
    return passes | {"made": passes["clusters" if config.warm_start else config.batches]}
