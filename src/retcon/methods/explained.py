"""Stage one of ECE: what each fact hangs on, which facts go together, and on which layers and neurons they are edited.

[Our reconstruction of doi 10.1145/3696410.3714835.]
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon import storage
from retcon.lm import LM
from retcon.locate.attribution import How, attribute, top_neurons
from retcon.locate.facts import Answer
from retcon.methods import clusters
from retcon.methods.memit import MEMITConfig
from retcon.requests import Edit, split_prompt, tied

__all__ = ["ECEConfig", "Piece", "Plan", "chosen_layers", "plan", "windows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ECEConfig(MEMITConfig):
    """Options of ECE."""

    p: float = 0.95
    """Share of the attributions' sum that the neurons of a cluster hold, at each layer; 1 takes all neurons."""
    cluster_p: float = 0.3
    """The same share for one fact: these neurons are its explanation, by which facts are clustered."""
    answer: Answer = "old"
    """The answer that is explained: `old` (the model's own where none is given), `new`, `contrast`, `greedy`."""
    attribution: How = "gradient"
    """gradient x activation, one pass for all layers, or `integrated` gradients, `integration_steps` a layer."""
    integration_steps: int = 20
    """Points of the integral."""
    layers_by: Literal["fixed", "attribution", "mass"] = "fixed"
    """Each cluster's layers: the same window for all; the window that holds the most of its attributions; or as many
    layers, neighbours or not, as hold the share `layer_p` of them."""
    width: int | None = None
    """Layers of a window; by default as many as the family edits."""
    layer_p: float = 0.5
    """Share of the attributions' sum, over all layers looked at, that the layers chosen by `mass` hold."""
    groups: Literal["clusters", "random", "none"] = "clusters"
    """What is solved together: facts with like explanations, groups of the same sizes drawn at random, or all."""
    n_clusters: int | None = None
    """Number of clusters; by default where the eigenvalues of the similarities jump."""
    most_clusters: int = 8
    """The most of them, by default."""
    neurons: Literal["attribution", "random"] = "attribution"
    """A cluster's neurons: those of the largest attributions, or as many drawn at random."""
    batches: Literal["together", "clusters", "single"] = "together"
    """Whose targets are sought in one descent: all facts', one cluster's, one fact's. The targets are the same; passes
    over the model are not."""
    warm_start: int = 0
    """t_0: steps that a cluster's members make together, on one shift, before each goes on alone."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Facts that are solved together."""

    facts: tuple[int, ...]
    """Their numbers, rising."""
    layers: tuple[int, ...]
    """Where they are edited, from below."""
    neurons: dict[int, Bool[Tensor, " d_k"]]
    """On which neurons of each layer; empty where on all."""
    counts: list[int]
    """How many, layer by layer."""
    mass: list[float]
    """Their share of the members' attributions, layer by layer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which facts are solved together, in which order, and where."""

    labels: list[int]
    """Of each fact, the number of its piece."""
    pieces: list[Piece]
    """In the order in which they are solved; the order of the facts does not change it."""


def plan(lm: LM, edits: Sequence[Edit], config: ECEConfig, fixed: tuple[int, ...]) -> Plan:
    """Explain, cluster, and choose layers and neurons.

    Args:
        lm: the model, with what earlier batches changed on.
        edits: the facts.
        config: options.
        fixed: the layers to edit where they are not chosen; else, if layers are named, those to choose from.
    """
    n = len(edits)
    if config.p >= 1 and config.groups == "none" and config.layers_by == "fixed":  # nothing is to be explained
        width = lm.arch.d_mlp
        whole = Piece(tuple(range(n)), fixed, {}, [width] * len(fixed), [1.0] * len(fixed))
        return Plan([0] * n, [whole])
    layers = _looked_at(lm, config, fixed)
    found = attribute(lm, edits, layers, answer=config.answer, how=config.attribution, steps=config.integration_steps)
    strength = {layer: scores.abs().double().cpu() for layer, scores in found.scores.items()}
    width = (config.width or len(fixed)) if config.layers_by == "attribution" else len(layers)
    labels = _together(_labels(edits, strength, width, config), edits)
    pieces = []
    for number in range(max(labels) + 1):
        facts = tuple(i for i in range(n) if labels[i] == number)
        pieces.append(_piece(facts, number, strength, width, config))
    return Plan(labels, pieces)


def chosen_layers(mass: Float[Tensor, "n layers"], config: ECEConfig, width: int) -> Bool[Tensor, "n layers"]:
    """The layers of each row: by `mass`, the largest up to a share; else the best `width` neighbours."""
    if config.layers_by == "mass":
        return top_neurons(mass, config.layer_p)
    first, place = windows(mass, width)[:, None], torch.arange(mass.shape[1])
    return (first <= place) & (place < first + width)


def windows(mass: Float[Tensor, "n layers"], width: int) -> Int[Tensor, " n"]:
    """Where the `width` neighbouring layers begin that hold the most of each row; the lowest of equals."""
    return mass.unfold(1, min(width, mass.shape[1]), 1).sum(2).argmax(1)


def _looked_at(lm: LM, config: ECEConfig, fixed: tuple[int, ...]) -> tuple[int, ...]:
    """The layers that are explained: those edited, or those to choose from. The last one has nothing above it."""
    if config.layers_by == "fixed" or config.layers is not None:
        return fixed
    last = lm.arch.n_layers - 1
    return tuple(range(min(1, last), max(last, 1)))


def _labels(
    edits: Sequence[Edit], strength: dict[int, Float[Tensor, "N d_k"]], width: int, config: ECEConfig
) -> list[int]:
    """Each fact's cluster, the same whatever the order of the facts."""
    n = len(edits)
    if config.groups == "none":
        return [0] * n
    order = sorted(range(n), key=lambda i: (storage.digest(edits[i].prompt, edits[i].subject, edits[i].target), i))
    mass = torch.stack([scores.sum(1) for scores in strength.values()], 1)  # (N, layers)
    inside = chosen_layers(mass, config, width) & (mass > 0)
    sets = [
        top_neurons(scores, config.cluster_p) & inside[:, place, None] for place, scores in enumerate(strength.values())
    ]
    found = clusters.clustered(
        torch.cat(sets, 1)[order], config.n_clusters, most=config.most_clusters, seed=config.seed
    )
    if config.groups == "random":
        found = clusters.shuffled(found, config.seed)
    labels = [0] * n
    for i, label in zip(order, found, strict=True):
        labels[i] = label
    return labels


def _together(labels: Sequence[int], edits: Sequence[Edit]) -> list[int]:
    """Clusters numbered without a gap, in which facts of one tie or of one key are together: where most of them were.

    Facts have one key where the subject and all before it are the same. Clusters are written one after the other to
    targets of the unedited model; of two that wrote to one key, the last would stand.
    """
    keys: dict[object, list[int]] = {}
    for i, edit in enumerate(edits):
        keys.setdefault((split_prompt(edit.prompt)[0], edit.subject), []).append(i)
    units = [frozenset([i]) for i in range(len(edits))]
    for facts in (*keys.values(), *tied(edits)):
        unit = frozenset[int]().union(*(units[i] for i in facts))
        for i in unit:
            units[i] = unit
    whole = list(labels)
    for unit in set(units):
        votes = Counter(labels[i] for i in unit)
        chosen = min(votes, key=lambda label: (-votes[label], label))
        for i in unit:
            whole[i] = chosen
    number = {label: n for n, label in enumerate(sorted(set(whole)))}
    return [number[label] for label in whole]


def _piece(
    facts: tuple[int, ...], number: int, strength: dict[int, Float[Tensor, "N d_k"]], width: int, config: ECEConfig
) -> Piece:
    """Layers and neurons of one cluster, by the sums of its members' attributions."""
    sums = {layer: scores[list(facts)].sum(0) for layer, scores in strength.items()}
    (inside,) = chosen_layers(torch.stack([total.sum() for total in sums.values()])[None], config, width)
    layers = tuple(layer for layer, chosen in zip(sums, inside.tolist(), strict=True) if chosen)
    neurons: dict[int, Tensor] = {}
    counts, mass = [], []
    for layer in layers:
        chosen = top_neurons(sums[layer], config.p)
        if config.neurons == "random":
            chosen = _drawn(chosen, int(storage.digest(config.seed, number, layer)[:12], 16))
        counts.append(int(chosen.sum()))
        mass.append(float(sums[layer][chosen].sum() / sums[layer].sum().clamp_min(1e-300)))
        if config.p < 1:
            neurons[layer] = chosen
    return Piece(facts, layers, neurons, counts, mass)


def _drawn(like: Bool[Tensor, " d_k"], seed: int) -> Bool[Tensor, " d_k"]:
    """As many neurons as in `like`, drawn at random."""
    order = torch.randperm(len(like), generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros_like(like)
    drawn[order[: int(like.sum())]] = True
    return drawn
