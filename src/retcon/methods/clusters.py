"""Which facts belong together: the similarity of their explanations, and clusters of facts that hang on like neurons.

A fact's explanation is a set of neurons. The similarity of two facts is the Jaccard index of their sets, clusters come
from spectral clustering of those similarities. Everything is seeded; nothing here knows of models.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retcon.errors import RetconError

__all__ = ["clustered", "eigengap", "jaccard", "shuffled", "spectral"]

_LINK = 1e-9
"""Added to all similarities, so that facts that share nothing are still, barely, one graph."""


def jaccard(sets: Bool[Tensor, "N f"]) -> Float[Tensor, "N N"]:
    """|A n B| / |A u B| for each two rows of `sets`, as one matrix product; 0 where both are empty.

    >>> jaccard(torch.tensor([[True, True, False], [False, True, True]]))[0, 1].item()  # 1 of 3
    0.3333333333333333
    """
    members = sets.float()  # counts stay far below 2^24, so fp32 is exact
    both = (members @ members.T).double()
    sizes = both.diagonal()
    return both / (sizes[:, None] + sizes[None, :] - both).clamp_min(1)


def eigengap(similarity: Float[Tensor, "N N"], most: int) -> int:
    """The number of clusters by the eigengap, at least 1 and at most min(most, N / 2).

    With L = I - D^{-1/2} S D^{-1/2} and its eigenvalues mu_1 <= mu_2 <= ..., it is the k with the largest
    mu_{k+1} - mu_k (von Luxburg, arXiv 0711.0189, section 8.3).
    """
    n = len(similarity)
    most = min(most, n // 2)
    if most < 2:
        return 1
    scale = similarity.double().sum(1).clamp_min(1e-300).rsqrt()
    values = 1 - torch.linalg.eigvalsh(similarity.double() * scale[:, None] * scale[None, :]).flip(0)
    return int((values[1 : most + 1] - values[:most]).argmax()) + 1


def spectral(similarity: Float[Tensor, "N N"], n_clusters: int, seed: int) -> list[int]:
    """Labels by spectral clustering of a similarity matrix; the same seed gives the same labels.

    Raises:
        RetconError: scikit-learn is missing.
    """
    kind = _spectral_clustering()
    run = kind(n_clusters=n_clusters, affinity="precomputed", assign_labels="kmeans", random_state=seed)
    with warnings.catch_warnings():  # that several facts have one set, and so there are fewer clusters than asked for
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        labels = run.fit_predict((similarity.double() + _LINK).cpu().numpy())
    return [int(label) for label in labels]


def clustered(sets: Bool[Tensor, "N f"], n_clusters: int | None = None, *, most: int = 8, seed: int = 0) -> list[int]:
    """Labels 0, 1, ... of the facts whose neuron sets are the rows of `sets`, numbered by their first member.

    A fact with an empty set is a cluster of its own. Where the others are fewer than two a cluster, all of them are
    one.

    Args:
        sets: what each fact hangs on.
        n_clusters: how many clusters; by default as many as the `eigengap` says.
        most: the most of them, where the eigengap decides.
        seed: of the k-means step.

    Raises:
        RetconError: scikit-learn is missing and there is more than one cluster to make.
    """
    explained = sets.any(1).nonzero()[:, 0].tolist()
    labels = [-1 - i for i in range(len(sets))]  # each one its own, until told otherwise
    if explained:
        similarity = jaccard(sets[explained])
        wanted = eigengap(similarity, most) if n_clusters is None else n_clusters
        together = wanted < 2 or len(explained) < 2 * wanted
        found = [0] * len(explained) if together else spectral(similarity, wanted, seed)
        for i, label in zip(explained, found, strict=True):
            labels[i] = label
    return _numbered(labels)


def shuffled(labels: Sequence[int], seed: int) -> list[int]:
    """The same number of facts a cluster, drawn at random: what the clusters are measured against."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    return _numbered([labels[i] for i in order])


def _numbered(labels: Sequence[int]) -> list[int]:
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return [places[label] for label in labels]


def _spectral_clustering() -> Any:
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError:
        raise RetconError("clustering needs scikit-learn: run `pip install 'retcon-lm[explain]'`") from None
    return SpectralClustering
