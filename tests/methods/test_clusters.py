"""Planted clusters are found again, the same each time; facts that cannot be clustered are kept apart or together."""

import sys

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from retcon.errors import RetconError
from retcon.methods import clusters


def planted(shared: float, *, seed: int = 0, n: int = 60, groups: int = 4) -> tuple[Tensor, list[int]]:
    """`n` sets of 100 of 2000 neurons; members of a group have `shared` of them in common. Also the groups."""
    generator = torch.Generator().manual_seed(seed)
    truth = [i % groups for i in range(n)]
    sets = torch.zeros(n, 2000, dtype=torch.bool)
    common = [torch.randperm(2000, generator=generator)[: int(100 * shared)] for _ in range(groups)]
    for row, group in zip(sets, truth, strict=True):
        row[common[group]] = True
        free = (~row).nonzero()[:, 0]
        row[free[torch.randperm(len(free), generator=generator)[: 100 - int(row.sum())]]] = True
    assert (sets.sum(1) == 100).all()
    return sets, truth


@pytest.mark.parametrize("shared", [0.9, 0.5])
@pytest.mark.parametrize("n_clusters", [4, None])
def test_planted_clusters_are_found(shared: float, n_clusters: int | None) -> None:
    sets, truth = planted(shared)
    assert adjusted_rand_score(truth, clusters.clustered(sets, n_clusters)) == 1


def test_what_shares_nothing_by_design_is_not_found() -> None:
    """The score of the test above is no matter of course."""
    sets, truth = planted(0.0)
    assert adjusted_rand_score(truth, clusters.clustered(sets, 4)) < 0.5


def test_the_same_seed_gives_the_same_labels() -> None:
    sets, _ = planted(0.1)
    labels = [clusters.clustered(sets, 4, seed=3) for _ in range(3)]
    assert labels[0] == labels[1] == labels[2]


def test_the_number_of_clusters_is_where_the_eigenvalues_jump() -> None:
    for groups in (2, 3, 5):
        sets, _ = planted(0.6, groups=groups)
        similarity = clusters.jaccard(sets)
        assert clusters.eigengap(similarity, 8) == groups
        assert clusters.eigengap(similarity, groups - 1) <= groups - 1
    assert clusters.eigengap(torch.ones(60, 60, dtype=torch.float64), 8) == 1
    assert clusters.eigengap(clusters.jaccard(sets[:3]), 8) == 1


def test_jaccard_is_intersection_over_union() -> None:
    sets = torch.rand(12, 30, generator=torch.Generator().manual_seed(1)) < 0.4
    found = clusters.jaccard(sets)
    for i in range(12):
        for j in range(12):
            wanted = int((sets[i] & sets[j]).sum()) / int((sets[i] | sets[j]).sum())
            assert found[i, j].item() == pytest.approx(wanted, abs=1e-15)
    assert clusters.jaccard(torch.zeros(2, 5, dtype=torch.bool)).tolist() == [[0, 0], [0, 0]]


def test_facts_without_neurons_are_singletons_and_few_facts_are_one_cluster() -> None:
    sets, _ = planted(0.9, n=6)
    assert clusters.clustered(sets, 4) == [0] * 6  # fewer than two a cluster
    assert len(set(clusters.clustered(sets, 3))) == 3
    sets[[1, 4]] = False
    assert clusters.clustered(sets, 4) == [0, 1, 0, 0, 2, 0]
    assert clusters.clustered(torch.zeros(3, 5, dtype=torch.bool)) == [0, 1, 2]
    assert clusters.clustered(torch.zeros(0, 5, dtype=torch.bool)) == []


def test_disjoint_groups_and_equal_sets_need_no_warning() -> None:
    sets = torch.zeros(8, 20, dtype=torch.bool)
    sets[:4, :5] = True
    sets[4:, 10:15] = True
    assert clusters.clustered(sets) == [0] * 4 + [1] * 4
    assert len(clusters.clustered(sets, 3)) == 8  # two are all there are


def test_shuffled_labels_keep_the_sizes() -> None:
    labels = [0] * 9 + [1] * 5 + [2]
    mixed = clusters.shuffled(labels, 0)
    assert sorted(mixed.count(i) for i in range(3)) == [1, 5, 9]
    assert mixed != labels
    assert mixed == clusters.shuffled(labels, 0)
    assert mixed[0] == 0  # numbered by first member


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    sets, _ = planted(0.9)
    with pytest.raises(RetconError, match="retcon-lm\\[explain\\]"):
        clusters.clustered(sets, 4)
    assert clusters.clustered(sets, 1) == [0] * 60  # which needs none
