"""The engine of all locate-and-edit methods: templates, statistics, targets, and a sweep that writes layer by layer.

A method of the family is a configuration, and a rule for one layer: from the keys and the residuals of all facts to the
factors of the change. Everything else is here, once.
"""

import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import patch, solve, stats, targets, templates, tokens
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.patch import LowRank, Patch, Step
from retcon.requests import Edit, to_dict
from retcon.sweep import Reading, Sweep
from retcon.targets import Store
from retcon.values import Found, SearchConfig

__all__ = ["LayerRule", "LocateAndEditConfig", "Problem", "Run", "edit_layers", "edited_layers", "joined", "metric"]

_SAME_KEY = 0.999
"""Cosine above which two keys count as the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateAndEditConfig:
    """What all locate-and-edit methods share."""

    layers: tuple[int, ...] | None = None
    """Layers to edit; by default a window found from the model's depth."""
    statistics: str = stats.SELF
    """Text for the second moments of keys: a file, a `datasets` id, `self` (the model's own), or `none` (C = I)."""
    statistics_tokens: int | None = None
    """Tokens of it; by default 16 times the key width, 10 times for `self`."""
    templates: int = 5
    """Texts, written by the model, that the prompt must hold after; besides the bare prompt."""
    template_length: int = 10
    """Tokens of each."""
    optimizer: Literal["adam", "normalised"] = "normalised"
    """How targets are sought: `adam` as published, or `normalised` steps along the gradient, which need a third of
    the evaluations."""
    steps: int = 16
    """Evaluations of the search's loss at most; published: 25."""
    lr: float = 0.12
    """Length of a step in units of |h0|; for `adam` its learning rate (published: 0.5)."""
    momentum: float = 0.5
    """Decay rate of the mean of gradients; Adam's is 0.9."""
    weight_decay: float = 0.5
    """Weight of |delta| / |h0|^2."""
    kl: float = 0.0625
    """Weight of the essence term."""
    clamp: float = 0.75
    """Longest delta, in units of |h0|."""
    stop: float = 5e-2
    """Loss at which a fact is finished."""
    stop_probability: float | None = 0.9
    """Probability of every target token, in every row, at which a fact is finished; None to go by the loss alone, as
    published."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the search's matrix products; shifts and sums stay fp32."""
    seed: int = 0
    """Seed of templates and sampled text."""


@dataclass(slots=True)
class Problem:
    """What a method's rule for one layer gets."""

    layer: int
    path: str
    """Module path of the projection."""
    keys: Float[Tensor, "d_k N"]
    residuals: Float[Tensor, "d N"]
    """This layer's share of what is still to be written, at the projection's output."""
    reading: Reading
    moments: stats.Moments | None
    """Statistics of keys; None stands for C = I."""
    past: Float[Tensor, "d_k n"]
    """Keys of earlier batches, from the state."""


LayerRule = Callable[[Problem], solve.Factors]


@dataclass(slots=True)
class Run:
    """Bookkeeping of one call of `edit`: seconds of each phase, and what to tell of each fact."""

    seconds: dict[str, float] = field(default_factory=lambda: {"statistics": 0.0, "targets": 0.0, "solve": 0.0})
    cached: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent in the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def edited_layers(lm: LM, layers: Sequence[int] | None, *, width: int = 5) -> tuple[int, ...]:
    """The layers to edit: those asked for, or `width` of them that end at 0.31 of the depth (9 of SmolLM2-135M's 30).

    Published windows end at 0.26 (Llama-3-8B) to 0.36 (gpt2-xl) of the depth; the rule is a start for models that have
    not been measured, not a tuned choice.

    Raises:
        RetconError: a layer is not there, or they are not in rising order.
    """
    n = lm.arch.n_layers
    if layers is None:
        last = max(min(round(0.31 * (n - 1)), n - 2), 1 if n > 1 else 0)
        return tuple(range(max(last - width + 1, min(1, last)), last + 1))
    chosen = tuple(layers)
    if not chosen or any(not 0 <= layer < n for layer in chosen) or list(chosen) != sorted(set(chosen)):
        raise RetconError(f"layers {list(chosen)} do not fit; name some of 0 to {n - 1} in rising order")
    return chosen


def search_config(config: LocateAndEditConfig, layer: int, site: Literal["layer_out", "module_out"]) -> SearchConfig:
    """The options of the search at a layer."""
    shared = {field.name for field in fields(SearchConfig)} & {field.name for field in fields(config)}
    return SearchConfig(layer=layer, site=site, **{name: getattr(config, name) for name in shared})


def edit_layers(
    lm: LM,
    edits: Sequence[Edit],
    config: LocateAndEditConfig,
    rule: LayerRule,
    *,
    method: str,
    share: Callable[[int], float] = lambda left: 1 / left,
    site: Literal["layer_out", "module_out"] = "layer_out",
    bare_weight: float = 0.5,
    state: Patch | None = None,
    remember: bool = False,
    stores: Sequence[Store] = (),
    config_record: dict[str, Any] | None = None,
) -> Patch:
    """Edit all facts in one batch.

    Args:
        lm: the model.
        edits: the facts; each needs a subject.
        config: the method's configuration.
        rule: from one layer's keys and residuals to the change of its projection.
        method: the method's id.
        share: from the number of layers still to write to the share of the remaining residual that the next one takes.
        site: where targets are sought; where the write gain is not linear it is `module_out` at each layer in turn.
        bare_weight: share of the bare prompt in an averaged key.
        state: the patch to go on from; the result contains it.
        remember: whether the keys of this batch are kept in the patch for later ones.
        stores: where targets are looked up and kept.
        config_record: what the patch says of the configuration, if not `config` itself.

    Raises:
        RequestError: an edit has no subject.
        RetconError: there is no edit, or the layers are not there.
    """
    if not edits:
        raise RetconError("there is no edit; give at least one")
    run = Run()
    layers = edited_layers(lm, config.layers)
    paths = [lm.arch.mlp_out[layer] for layer in layers]
    each = lm.arch.write_gain is None
    with ExitStack() as stack:
        with run.timed("statistics"):
            known = _moments(lm, paths, config)
        with run.timed("targets"):
            texts = ("", *_templates(lm, config))  # before the state is on: the unedited model writes them
        if state is not None and state.id not in {item.id for item in patch.active(lm.model)}:
            stack.enter_context(state.on(lm.model))
        with run.timed("targets"):
            top = layers[-1]
            where = search_config(config, top, "module_out" if each else site)
            found, run.cached = (None, 0) if each else targets.find(lm, edits, where, texts, stores)
        entries: dict[str, LowRank] = {}
        keys: dict[str, Tensor] = {}
        sweep = stack.enter_context(Sweep(lm, edits, texts, layers, bare_weight=bare_weight))
        for index, (layer, path) in enumerate(zip(layers, paths, strict=True)):
            if each:
                with run.timed("targets"):
                    below = tuple(entries.values())
                    found, cached = targets.find(lm, edits, replace(where, layer=layer), texts, stores, written=below)
                    run.cached += cached if index == 0 else 0
            assert found is not None
            with run.timed("solve"):
                reading = sweep.read(layer, top)
                left = _residuals(lm, found, reading, at_module=each or site == "module_out")
                part = left if each else left * share(len(layers) - index)
                problem = Problem(
                    layer, path, reading.keys.T, part.T, reading, known.get(path), past_keys(state, path, lm)
                )
                if index == 0:
                    run.notes["shared_keys"] = _shared_keys(reading.keys, part)
                try:
                    factors = rule(problem)
                except ValueError as error:
                    raise RetconError(f"layer {layer}: {error}") from error
                entries[path] = LowRank(factors.U.float(), factors.V.float())
                keys[path] = reading.keys.T
                sweep.write(layer, entries[path])
        with run.timed("solve"):
            final = sweep.read(top, top, bare_only=True)
            assert found is not None
            rest = _residuals(lm, found, final, at_module=each or site == "module_out")
            run.facts = _diagnostics(found, rest, final)
    return _as_patch(lm, edits, config_record or asdict(config), method, entries, keys if remember else {}, state, run)


def _moments(lm: LM, paths: Sequence[str], config: LocateAndEditConfig) -> dict[str, stats.Moments]:
    if config.statistics == "none":
        return {}
    return stats.moments(lm, paths, config.statistics, tokens_wanted=config.statistics_tokens, seed=config.seed)


def _templates(lm: LM, config: LocateAndEditConfig) -> tuple[str, ...]:
    words = [templates.SEARCH_WORDS[i % len(templates.SEARCH_WORDS)] for i in range(config.templates)]
    return templates.written(lm, words, length=config.template_length, seed=config.seed) if words else ()


def _residuals(lm: LM, found: Found, reading: Reading, *, at_module: bool) -> Float[Tensor, "N d"]:
    """What is still to be written at the projection's output, from the present state of the partly edited model."""
    if at_module:
        return found.target.double() - reading.outputs
    gain = lm.arch.write_gain
    assert gain is not None
    return (found.target.double() - reading.states) / gain


def metric(problem: Problem, weight: float) -> solve.Metric:
    """`weight * C + past keys`, factored; C = I where there are no statistics."""
    width = problem.keys.shape[0]
    if problem.moments is None:
        second = torch.eye(width, dtype=torch.float64, device=problem.keys.device)
    else:
        second = solve.shrunk(problem.moments.second, problem.moments.count).to(problem.keys.device)
    return solve.cholesky(weight * second + problem.past @ problem.past.T)


def past_keys(state: Patch | None, path: str, lm: LM) -> Float[Tensor, "d_k n"]:
    """Keys of the batches in `state`, so that a later batch leaves them alone; (d_k, 0) where there are none."""
    none = torch.zeros(lm.arch.d_mlp, 0, dtype=torch.float64, device=lm.device)
    if state is None or f"cat.keys.{path}" not in state.state:
        return none
    return state.state[f"cat.keys.{path}"].double().to(lm.device)


def _remembered(old: Tensor | None, new: Tensor) -> Tensor:
    """Keys to keep, as at most d_k columns with the same sum of outer products."""
    both = new if old is None else torch.cat([old.double(), new.double().cpu()], 1)
    if both.shape[1] <= both.shape[0]:
        return both.float()
    lengths, directions = torch.linalg.eigh(both.double() @ both.double().T)
    columns: Tensor = directions * lengths.clamp_min(0).sqrt()
    return columns.float()


def _shared_keys(keys: Float[Tensor, "N d_k"], residuals: Float[Tensor, "N d"]) -> int:
    """Pairs of facts with the same key and different residuals: no weight can meet both. Warns where there are any."""
    if len(keys) < 2 or len(keys) > 4000:
        return 0
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    close = torch.triu(unit @ unit.T > _SAME_KEY, 1)
    pairs = close.nonzero()
    apart = (residuals[pairs[:, 0]] - residuals[pairs[:, 1]]).norm(dim=1) > 0.1 * residuals[pairs[:, 0]].norm(dim=1)
    count = int(apart.sum())
    if count:
        warnings.warn(
            f"{count} pairs of facts share a key and want different answers; each pair will end between its two",
            RetconWarning,
            stacklevel=4,
        )
    return count


def _diagnostics(found: Found, rest: Tensor, final: Reading) -> list[dict[str, Any]]:
    """One record a fact: how the search ended, and the share of its residual that was not written."""
    length = found.delta.double().norm(dim=1)
    columns = {
        "evaluations": found.evaluations.tolist(),
        "loss": [round(value, 5) for value in found.loss.tolist()],
        "probability": [round(value, 5) for value in found.probability.tolist()],
        "delta_norm": [round(value, 4) for value in length.tolist()],
        "base_norm": [round(value, 4) for value in found.base.norm(dim=1).tolist()],
        "left": [round(value, 4) for value in (rest.norm(dim=1) / length.clamp_min(1e-12)).tolist()],
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def joined(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs, one after the other, tell of themselves: counts and seconds added, facts in order."""
    seconds: dict[str, float] = {}
    for info in infos:
        for phase, value in info["seconds"].items():
            seconds[phase] = round(seconds.get(phase, 0.0) + value, 3)
    return {
        "n": sum(info["n"] for info in infos),
        "seconds": seconds,
        "targets_cached": sum(info["targets_cached"] for info in infos),
        "facts": [fact for info in infos for fact in info["facts"]],
    }


def _as_patch(
    lm: LM,
    edits: Sequence[Edit],
    config: dict[str, Any],
    method: str,
    entries: dict[str, LowRank],
    keys: dict[str, Tensor],
    state: Patch | None,
    run: Run,
) -> Patch:
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    step = Step(
        method=method,
        config=config,
        edits=tuple(to_dict(edit) for edit in edits),
        parent=patch.top(lm.model),
        seed=config.get("seed"),
        versions=versions,
        chat=lm.chat,
        bos=bool(tokens.special_ids(lm)[0]),
    )
    base = patch.describe_base(lm.model, entries, name=lm.name, revision=lm.revision, source=lm.source)
    info = {
        "n": len(edits),
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "targets_cached": run.cached,
        **run.notes,
        "facts": run.facts,
    }
    old = {} if state is None else state.state
    memory = {f"cat.keys.{path}": _remembered(old.get(f"cat.keys.{path}"), found.cpu()) for path, found in keys.items()}
    if state is None:
        return Patch(dict(entries), base, (step,), memory, info)
    return state.then(entries, step, base=base, state={**old, **memory}, info=info)
