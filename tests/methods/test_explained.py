"""Stage one of ECE: windows and neurons follow the attributions, and its controls have the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from retcon.lm import LM
from retcon.locate.attribution import Attributions, attribute
from retcon.methods import explained
from retcon.methods.explained import ECEConfig, Plan, chosen_layers, plan, windows
from retcon.requests import Edit
from retcon.testing import tiny_edits

Tiny = Callable[..., LM]

GROUPS, WIDTH, LAYERS = 4, 2000, (1, 2, 3, 4, 5, 6)
EDITS = [Edit(prompt="{} is in", subject=f"Place {i}", target="Rome", id=str(i)) for i in range(60)]
TRUTH = [i % GROUPS for i in range(60)]
HOME = {0: (1, 2), 1: (2, 3), 2: (4, 5), 3: (5, 6)}


@pytest.fixture(name="asked")
def _asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Planted attributions: each group on two layers of its own, on 100 of 2000 neurons, half of them shared."""
    asked: list[dict[str, Any]] = []

    def planted(_: LM, edits: Sequence[Edit], layers: Sequence[int], **options: Any) -> Attributions:
        asked.append({"layers": tuple(layers), **options})
        generator = torch.Generator().manual_seed(0)
        common = [torch.randperm(WIDTH, generator=generator)[:50] for _ in range(GROUPS)]
        whole = {layer: torch.zeros(60, WIDTH) for layer in LAYERS}
        for i, group in enumerate(TRUTH):
            own = torch.randperm(WIDTH, generator=generator)[:50]
            for layer in HOME[group]:
                whole[layer][i, common[group]] = -2.0
                whole[layer][i, own] = 1.0
        rows = [int(str(edit.id)) for edit in edits]
        nothing = ("",) * len(edits)
        scores = {layer: whole[layer][rows] for layer in layers}
        return Attributions(scores, torch.zeros(len(edits)), nothing, nothing, "gradient")

    monkeypatch.setattr(explained, "attribute", planted)
    return asked


def made(lm: LM, edits: Sequence[Edit] = EDITS, **options: Any) -> Plan:
    given: dict[str, Any] = {"layers": LAYERS, "layers_by": "attribution", "width": 2, "cluster_p": 0.9} | options
    return plan(lm, edits, ECEConfig(**given), LAYERS)


@pytest.mark.parametrize("n_clusters", [None, 4])
def test_planted_neurons_give_their_clusters_windows_and_neurons(
    tiny_lm: Tiny, asked: list[dict[str, Any]], n_clusters: int | None
) -> None:
    found = made(tiny_lm("llama"), p=0.7, n_clusters=n_clusters)
    assert adjusted_rand_score(TRUTH, found.labels) == 1
    for number, piece in enumerate(found.pieces):
        group = TRUTH[piece.facts[0]]
        assert piece.facts == tuple(i for i in range(60) if found.labels[i] == number)
        assert piece.layers == HOME[group]
        # the shared neurons hold two thirds of the group's sum
        assert all(50 <= count < 120 for count in piece.counts)
        assert all(0.65 < mass <= 0.7 for mass in piece.mass)
        assert [int(neurons.sum()) for neurons in piece.neurons.values()] == piece.counts


def test_layers_by_mass_are_as_many_as_hold_the_share(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    """Each group's attributions are on two layers, half on each."""
    found = made(tiny_lm("llama"), layers_by="mass", layer_p=1 - 1e-9, n_clusters=4)
    homes = {HOME[TRUTH[piece.facts[0]]]: piece.layers for piece in found.pieces}
    assert all(layers[0] in home for home, layers in homes.items())
    mass = torch.tensor([[1.0, 5.0, 0.0, 3.0, 1.0], [0.0, 0.0, 2.0, 0.0, 0.0]])
    for share, wanted in ((0.4, [[1], [2]]), (0.8, [[1, 3], [2]]), (1.0, [[0, 1, 2, 3, 4]] * 2)):
        chosen = chosen_layers(mass, ECEConfig(layers_by="mass", layer_p=share), 2)
        assert [row.nonzero()[:, 0].tolist() for row in chosen] == wanted
    assert chosen_layers(mass, ECEConfig(layers_by="attribution"), 2)[0].tolist() == [True, True, False, False, False]


def test_one_layer_for_all_is_clustered_by_what_is_seen_there(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    """Facts that hang on no neuron of the fixed layers are clusters of their own."""
    found = plan(tiny_lm("llama"), EDITS, ECEConfig(layers=(2,), cluster_p=0.9), (2,))
    assert asked[0]["layers"] == (2,)
    alone = [piece.facts for piece in found.pieces if len(piece.facts) == 1]
    assert sorted(fact for (fact,) in alone) == [i for i in range(60) if 2 not in HOME[TRUTH[i]]]
    rest = [found.labels[i] for i in range(60) if 2 in HOME[TRUTH[i]]]
    assert adjusted_rand_score([t for t in TRUTH if 2 in HOME[t]], rest) == 1


def test_options_reach_the_attribution(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    lm = tiny_lm("llama")
    made(lm, answer="contrast", attribution="integrated", integration_steps=7)
    assert asked[-1] == {"layers": LAYERS, "answer": "contrast", "how": "integrated", "steps": 7}
    plan(lm, EDITS, ECEConfig(layers_by="attribution", width=2), (1,))
    assert asked[-1]["layers"] == (1, 2)  # of four, all but the first, and but the last: nothing is above it


def test_nothing_is_explained_where_nothing_is_chosen(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    lm = tiny_lm("llama")
    found = plan(lm, EDITS, ECEConfig(p=1.0, groups="none"), (1, 2))
    assert not asked
    assert found.labels == [0] * 60
    assert found.pieces[0].neurons == {}
    assert found.pieces[0].counts == [lm.arch.d_mlp] * 2
    assert made(lm, p=1.0, groups="none", layers_by="fixed", neurons="random").pieces[0].neurons == {}


def test_controls_have_the_sizes_of_what_they_control(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    lm = tiny_lm("llama")
    real = made(lm, p=0.5, n_clusters=3)
    neurons = made(lm, p=0.5, n_clusters=3, neurons="random")
    assert neurons.labels == real.labels
    for piece, other in zip(real.pieces, neurons.pieces, strict=True):
        assert other.counts == piece.counts
        assert [int(chosen.sum()) for chosen in other.neurons.values()] == piece.counts
        assert all(b < 0.2 < a for a, b in zip(piece.mass, other.mass, strict=True))
        assert not torch.equal(*other.neurons.values())
    groups = made(lm, p=0.5, n_clusters=3, groups="random")
    assert sorted(map(groups.labels.count, (0, 1, 2))) == sorted(map(real.labels.count, (0, 1, 2)))
    assert adjusted_rand_score(real.labels, groups.labels) < 0.2
    assert groups.labels == made(lm, p=0.5, n_clusters=3, groups="random").labels


def test_the_order_of_facts_does_not_matter(tiny_lm: Tiny, asked: list[dict[str, Any]]) -> None:
    for groups in ("clusters", "random"):
        there = made(tiny_lm("llama"), p=0.5, n_clusters=5, groups=groups)
        back = made(tiny_lm("llama"), EDITS[::-1], p=0.5, n_clusters=5, groups=groups)
        assert there.labels == back.labels[::-1]
        assert [piece.counts for piece in there.pieces] == [piece.counts for piece in back.pieces]


def test_a_window_is_where_most_of_the_mass_is() -> None:
    mass = torch.tensor([[1.0, 5.0, 1.0, 4.0], [4.0, 1.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert windows(mass, 2).tolist() == [0, 2, 0]
    assert windows(mass, 1).tolist() == [1, 0, 0]
    assert windows(mass, 9).tolist() == [0, 0, 0]


def test_real_attributions_choose_the_largest(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    found = plan(lm, edits, ECEConfig(layers=(1, 2), p=0.5, groups="none"), (1, 2))
    scores = attribute(lm, edits, (1, 2)).scores
    for layer, chosen in found.pieces[0].neurons.items():
        total = scores[layer].abs().sum(0)
        assert total[chosen].min() >= total[~chosen].max()
        assert 0.4 < float(total[chosen].sum() / total.sum()) <= 0.5
