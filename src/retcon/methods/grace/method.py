"""GRACE: a codebook beside one layer, whose keys are prompts and whose values are outputs (arXiv 2211.11031)."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import progress, stats
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods.grace.rows import Site, question, read_places
from retcon.methods.grace.run import Run
from retcon.methods.grace.state import Growth, Memory
from retcon.methods.memories import (
    MemoryMethod,
    chosen_layer,
    last_part,
    name_of,
    put_on,
    without_edits,
)
from retcon.methods.record import as_patch, clock, refuse_none, resumed, timed
from retcon.methods.retained import retained_ids
from retcon.patch import Codebook, Entry, Patch
from retcon.patch.chain import chained, parts_of
from retcon.precision import Precision
from retcon.requests import Edit, to_dict
from retcon.targets import Store

__all__ = ["GRACE", "GRACEConfig", "without"]

_DEPTH = 0.8
_NEAR = 0.05
"""Quantile of the distances to ordinary prompts that the automatic radius is taken from."""
_KEYS = 64
"""Edits whose distances are looked at for it."""
_RETAIN_HITS = 0.01
"""Share of ordinary prompts that may hit before a warning is given."""
_NOISE = {"bfloat16": 1e-2, "float16": 2e-3}
"""Relative rounding error of a query between two forwards; 1e-5 in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GRACEConfig:
    """Options of GRACE."""

    layer: int | None = None
    """Layer whose MLP output projection gets the codebook; by default at 0.8 of the depth."""
    radius: float | Literal["auto"] = "auto"
    """Radius of a new key, in units of the projection's input; `auto` is half of the 5 % quantile of the distances
    from ordinary prompts to the edits. Published: 1, whatever the model. A state goes on with its own."""
    widest: float | None = 2.0
    """How far a ball may widen for edits of one answer, in units of `radius`; None for no limit, as published."""
    statistics: str = stats.SELF
    """Text whose tokens are the ordinary prompts where no retain texts are given: a file, a `datasets` id, `self` (the
    model's own), or `none`."""
    replacement: Literal["replace_last", "replace_prompt", "replace_all"] = "replace_last"
    """Where a hit prompt's output becomes the value: its last token, those before it, everywhere."""
    growth: Growth = "coverage"
    """What a key does that widens: stay, or move half-way to the new edit."""
    start: Literal["warm", "cold"] = "warm"
    """A value begins at the projection's own output, or, as published, uniform in [0, 1)."""
    end_token: bool = False
    """Whether the end token is part of the answer; published: true."""
    steps: int = 50
    """Evaluations of a value's loss at most; published: 50 to 200."""
    lr: float = 1.0
    """Learning rate of Adam."""
    stop: float = 0.01
    """Loss below which a value is done, once all its tokens are the argmax."""
    retest: bool = False
    """Whether each token after the prompt is looked up on its own too, as published, or the prompt alone decides."""
    precision: Precision = "float32"
    """Dtype of the descent's matrix products."""
    seed: int = 0
    """Seed of cold values and of sampled text."""


class GRACE(MemoryMethod):
    """GRACE: a memory beside the weights, with a key, a radius and a value for each fact or group of like facts.

        y' = V_i   where i = argmin_j |K_j - h| and |K_i - h| <= r_i,   else y = W h

    h is what the projection reads at the prompt's last token, V_i is sought by Adam so that the model gives the answer.
    Edits come one after the other: far from all keys a new one is made; near one of the same answer its ball widens;
    near one of another answer both balls end half-way; at the same place the answer is replaced. Edits that lose their
    key on the way get one of their own. Values are sought together for all edits that do not build on one another.

    Paper: Hartvigsen et al., Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors, NeurIPS 2023,
    arXiv 2211.11031.
    """

    Config: Any = GRACEConfig
    config: GRACEConfig
    name: str = "grace"

    def layer(self, lm: LM) -> int:
        """The layer whose projection gets the codebook.

        Raises:
            RetconError: it is not there.
        """
        return chosen_layer(lm, self.config.layer, round(_DEPTH * (lm.arch.n_layers - 1)))

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Enter the facts one after the other; with `state`, into its codebook, in a patch that contains it.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: prompts to keep: they set the automatic radius, and the patch tells how many of them hit.
            state: the patch to go on from.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a target or a text to keep has no token.
            RetconError: there is no edit, the layer is not there, an option makes no sense, or the state's codebook
                replaces elsewhere, tests otherwise, ends its answers otherwise or was scaled.
        """
        refuse_none(edits)
        if self.config.steps < 1 or (self.config.radius != "auto" and not self.config.radius > 0):
            raise RetconError("steps must be 1 or more and radius above 0 (or auto); give others")
        if self.config.widest is not None and not self.config.widest > 0:
            raise RetconError(f"widest is {self.config.widest:g}; it must be above 0, or none for no limit")
        path = lm.arch.mlp_out[self.layer(lm)]
        old = self._codebook(state, path)
        seconds = clock()
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state))
            codebook, info = self._entered(lm, path, edits, retain, state, old, seconds)
            alone = as_patch(lm, self.name, self.config, edits, {path: codebook}, None, {}, seconds, info)
        return put_on(state, alone, path, codebook, in_place=old is not None)

    def _codebook(self, state: Patch | None, path: str) -> Codebook | None:
        """The codebook to go on from: the state's, where it is the last thing that acts on the projection."""
        last = last_part(state, path)
        if not isinstance(last, Codebook):
            return None
        if last.mode != self.config.replacement or last.strength != 1:
            raise RetconError(
                f"the state's codebook acts by {last.mode} with strength {last.strength:g}; go on with the same "
                "replacement, from a patch that was not scaled"
            )
        if last.retest != self.config.retest:
            raise RetconError(
                f"the state's codebook was made with retest={last.retest}, which holds for all its edits; go on with "
                "the same"
            )
        ended = [step.config.get("end_token") for step in state.history if step.method == self.name] if state else []
        if ended and ended[-1] is not None and ended[-1] != self.config.end_token:
            raise RetconError(
                f"the state's answers were entered with end_token={ended[-1]}, and like answers would look unlike; go "
                "on with the same"
            )
        return last

    def _entered(
        self,
        lm: LM,
        path: str,
        edits: Sequence[Edit],
        retain: Sequence[str],
        state: Patch | None,
        old: Codebook | None,
        seconds: dict[str, float],
    ) -> tuple[Codebook, dict[str, Any]]:
        """The codebook with the edits in it, and what there is to tell of it."""
        config = self.config
        asked = [question(lm, edit, end=config.end_token) for edit in edits]
        with timed(seconds, "targets"):
            seen = read_places(lm, path, [item.prompt for item in asked])
        with timed(seconds, "statistics"):
            ordinary = self._ordinary(lm, path, retain, sought=old is None and config.radius == "auto")
            radius, told = _radius(old, config.radius, ordinary, seen.queries)
        limits: dict[str, Any] = {
            "most": None if config.widest is None else config.widest * radius,
            "growth": config.growth,
            "noise": _noise(str(lm.dtype)),
        }
        width = seen.queries.shape[1]
        memory = Memory(width, radius, **limits) if old is None else Memory.of(old, **limits)
        site = Site(
            layer=self.layer(lm), path=path, mode=config.replacement, steps=config.steps, lr=config.lr,
            stop=config.stop, precision=config.precision,
        )  # fmt: skip
        names = [name_of(to_dict(edit)) for edit in edits]
        run = Run(lm, site, memory, asked, seen, names, seconds, end_token=config.end_token)
        run.cold = config.seed if config.start == "cold" else None
        run.values = [] if old is None else list(old.values)
        run.earlier = {} if state is None else {name_of(record): record for record in _records(state)}
        with progress.task("facts", len(edits)) as advance:
            for number in range(len(edits)):
                run.take(number)
                advance(1)
            run.flush()
        values = torch.stack([value for value in run.values if value is not None])
        codebook = Codebook.made(
            memory.keys.clone(), values, memory.radii, memory.labels, memory.queries.clone(), memory.owners,
            memory.names, mode=config.replacement, radius=radius, retest=config.retest,
        )  # fmt: skip
        info = {"targets_cached": 0, **told, **_told(codebook, ordinary, retain), "facts": run.facts}
        return codebook, info

    def _ordinary(self, lm: LM, path: str, retain: Sequence[str], *, sought: bool) -> Float[Tensor, "n d_in"] | None:
        """Queries of prompts that are to stay as they are; None where there are none and none are needed.

        Raises:
            RetconError: they are needed and nothing tells where to take them from.
        """
        if retain:
            return read_places(lm, path, retained_ids(lm, retain)).queries
        if not sought:
            return None
        if self.config.statistics == "none":
            raise RetconError("an automatic radius needs retain texts or statistics; give some, or a radius")
        return stats.held_out(lm, [path], self.config.statistics, seed=self.config.seed)[path].T.float()


def without(made: Patch, ids: Iterable[str]) -> Patch:
    """A patch of GRACE without some edits; the rest answer as before, and without any it is the bare model.

    Args:
        made: the patch.
        ids: of the edits; the `id` in their record, or, where they have none, the one in `info["facts"]`.

    Raises:
        PatchError: there is no such edit in it.
    """
    wanted = list(dict.fromkeys(ids))
    entries: dict[str, Entry] = {}
    found: set[str] = set()
    for path, entry in made.entries.items():
        parts = []
        for part in parts_of(entry):
            mine = [name for name in wanted if isinstance(part, Codebook) and name in part.names]
            told = made.base.weights.get(path)
            noise = _noise("float32" if told is None else told.dtype)
            parts.append(_shrunk(part, mine, noise) if isinstance(part, Codebook) and mine else part)
            found |= set(mine)
        entries[path] = chained(parts)
    return without_edits(made, GRACE.name, entries, wanted, found)


def _noise(dtype: str) -> float:
    """The relative rounding error of a query in a model of some dtype."""
    return _NOISE.get(dtype.removeprefix("torch."), 1e-5)


def _shrunk(codebook: Codebook, names: Sequence[str], noise: float) -> Codebook:
    memory = Memory.of(codebook, most=None, growth="coverage", noise=noise)
    values = codebook.values
    for name in names:
        values = values[torch.tensor(memory.delete(name), dtype=torch.long)]
    settings = {name: value for name, value in codebook.settings().items() if name != "names"}
    return Codebook.made(
        memory.keys.clone(), values, memory.radii, memory.labels, memory.queries.clone(), memory.owners, memory.names,
        **settings,
    )  # fmt: skip


def _records(state: Patch) -> list[dict[str, Any]]:
    return [record for step in state.history if step.method == GRACE.name for record in step.edits]


def _radius(
    old: Codebook | None,
    asked: float | Literal["auto"],
    ordinary: Float[Tensor, "n d_in"] | None,
    queries: Float[Tensor, "m d_in"],
) -> tuple[float, dict[str, Any]]:
    """The radius of new keys, and how it stands to the distances of ordinary prompts."""
    gaps = None
    if ordinary is not None and len(ordinary):
        gaps = torch.cat([(ordinary - query).norm(dim=1) for query in queries[:_KEYS]])
    if old is not None:
        radius = old.radius
    elif asked != "auto":
        radius = float(asked)
    else:
        assert gaps is not None
        radius = float(gaps.quantile(_NEAR)) / 2
        if radius <= 0:
            raise RetconError("ordinary prompts have the very keys of the edits; give other retain texts, or a radius")
    told: dict[str, Any] = {"radius": radius}
    if gaps is not None:
        told["radius_over_median"] = round(radius / max(float(gaps.median()), 1e-12), 5)
    return radius, told


def _told(codebook: Codebook, ordinary: Float[Tensor, "n d_in"] | None, retain: Sequence[str]) -> dict[str, Any]:
    """Keys, radii, and which share of ordinary prompts hit; warns where too many do."""
    info: dict[str, Any] = {"keys": codebook.rank, "radii_sum": round(float(codebook.radii.sum()), 5)}
    if ordinary is not None:
        hits = float(codebook.lookup(ordinary).hit.float().mean())
        info["retain_hits"] = round(hits, 5)
        if hits > _RETAIN_HITS:
            warnings.warn(
                f"{hits:.1%} of the {'retain prompts' if retain else 'ordinary prompts'} hit a key and are answered by "
                "its value; give a smaller radius, or a smaller widest",
                RetconWarning,
                stacklevel=4,
            )
    return info
