"""Says how the networks of a whole model act together: connectivity, and clusters by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

_AT_ONCE = 4096  # tokens
_SPACED = 4096  # tokens that decide the shrinkage
_LEAST = 1e-4  # shrinkage that leaves an inverse of float64 with digits
_TRIED = 24  # numbers of clusters
_PER_CLUSTER = 4  # networks, on average, at least


@dataclass(frozen=True)
class Structure:
    """Holds how the n networks of an atlas act together, in its order.

    Attributes:
        correlation: (n, n), float32, of their time courses.
        partial: (n, n), float32: what is left of the correlation of two networks when that with
            all others is taken into account.
        clusters: (n,), int64: alike clusters have near numbers.
        facts: plain values: `clusters`, how many; `silhouette`, -1 to 1; `shrinkage`, 0 to 1.
    """

    correlation: Tensor
    partial: Tensor
    clusters: Tensor
    facts: dict[str, Any]

    def state(self) -> dict[str, Tensor]:
        """Give the matrices for a file, float16."""
        return {"correlation": self.correlation.half(), "partial": self.partial.half()}


def structure_of(courses: Sequence[Tensor]) -> Structure:
    """Correlate the networks of all blocks with each other, and cluster them.

    Args:
        courses: of each block, (n_tokens, k), standardised, any floating dtype.
    """
    correlation = correlate(courses)
    partial, shrinkage = partial_correlation(correlation, courses)
    clusters, silhouette = cluster(correlation)
    facts = {
        "clusters": int(clusters.max()) + 1,
        "silhouette": silhouette,
        "shrinkage": shrinkage,
    }
    return Structure(correlation, partial, clusters, facts)


def structure_bytes(n_networks: int) -> int:
    """Estimate the memory of `structure_of` besides the courses, as it was measured."""
    return 45 * n_networks**2 + 12 * _SPACED * n_networks


def correlate(courses: Sequence[Tensor]) -> Tensor:
    """Correlate all time courses, (n, n), float32; one that never changes has zeros."""
    total = sum(rows.T @ rows for rows in _rows(courses))
    deviation = total.diagonal().sqrt()
    scale = torch.where(deviation > 0, 1.0 / deviation, 0.0)
    found = (total * scale * scale[:, None]).clamp(-1.0, 1.0)
    return found.fill_diagonal_(1.0)


def partial_correlation(correlation: Tensor, courses: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Correlate every two networks with all others held fixed.

    The correlation is shrunk as Ledoit and Wolf do it before it is inverted. Their formula takes
    tokens for independent and neighbours are not, so the shrinkage is that of some thousand tokens
    that lie apart.

    Args:
        correlation: (n, n).
        courses: see `structure_of`.

    Returns:
        (n, n), float32; the shrinkage, 0 to 1.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance

    step = max(1, len(courses[0]) // _SPACED)
    spaced = torch.cat([course[::step].float() for course in courses], dim=1).numpy()
    shrinkage = max(float(ledoit_wolf_shrinkage(spaced, assume_centered=True)), _LEAST)
    shrunk = shrunk_covariance(correlation.double().numpy(), shrinkage)
    precision = torch.linalg.inv(torch.from_numpy(shrunk))
    scale = precision.diagonal().rsqrt()
    found = -precision * scale * scale[:, None]
    return found.float().fill_diagonal_(1.0), shrinkage


def cluster(correlation: Tensor) -> tuple[Tensor, float | None]:
    """Cluster networks whose courses rise and fall together, or against each other.

    Average linkage on ``1 - |correlation|``: the sign of a map means nothing. Their number is the
    one with the best silhouette, of some with four networks each and more on average.

    Args:
        correlation: (n, n).

    Returns:
        (n,), int64, numbered along the tree; the silhouette, None where there is one cluster.
    """
    from sklearn.metrics import silhouette_score

    n = len(correlation)
    most = n // _PER_CLUSTER
    if most < 2:
        return torch.zeros(n, dtype=torch.long), None
    distance = (1.0 - correlation.double().abs()).numpy()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    tried = {}
    for number in np.unique(np.geomspace(2, most, _TRIED).round().astype(int)):
        labels = fcluster(tree, number, "maxclust")
        if len(np.unique(labels)) > 1:  # equal distances are joined together
            tried[number] = silhouette_score(distance, labels, metric="precomputed"), labels
    if not tried:
        return torch.zeros(n, dtype=torch.long), None
    best, labels = max(tried.values(), key=lambda found: found[0])
    along = dict.fromkeys(labels[leaves_list(tree)].tolist())
    numbers = {label: number for number, label in enumerate(along)}
    return torch.tensor([numbers[label] for label in labels.tolist()]), float(best)


def _rows(courses: Sequence[Tensor]) -> Iterator[Tensor]:
    """Give all networks side by side, some tokens at a time, centred, float32."""
    means = torch.cat([course.float().mean(0) for course in courses])
    for start in range(0, len(courses[0]), _AT_ONCE):
        parts = [course[start : start + _AT_ONCE].float() for course in courses]
        yield torch.cat(parts, dim=1) - means
