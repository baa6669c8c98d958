"""CanICA of one matrix of neuron signals: reduction, whitening, FastICA, maps.

Varoquaux et al. 2010 (doi:10.1016/j.neuroimage.2010.02.010); for neurons: arXiv 2508.05239. One
matrix is one group, so the group step of CanICA reduces to one decomposition, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from funcnet_plugin.ica.fastica import RunReport, fastica
from funcnet_plugin.ica.signals import reduce_time, whiten, zscore


@dataclass(frozen=True)
class Decomposition:
    """The functional networks of one matrix of signals.

    Attributes:
        maps: (n_runs, k, n_signals), float32, z-scored over neurons, the peak of each positive.
        runs: how each start ended.
        explained_variance: share of the signals' variance inside the k reduced dimensions, 0 to 1;
            NaN where the decomposer does not tell.
    """

    maps: Tensor
    runs: tuple[RunReport, ...]
    explained_variance: float


def canica(
    X: Tensor,
    n_components: int,
    *,
    contrast: str = "cube",
    tol: float = 1e-4,
    max_iter: int = 300,
    n_init: int = 1,
    seed: int = 0,
) -> Decomposition:
    """Find functional networks: groups of neurons that act together over tokens.

    Args:
        X: (n_tokens, n_signals), any floating dtype; the raw signals of one group of samples.
        n_components: number of networks, k. The result has fewer where the signals do not span k
            directions.
        contrast, tol, max_iter, n_init, seed: see `fastica`.

    Raises:
        DecompositionError: as `zscore`, `reduce_time` and `fastica`.
    """
    reduced, explained = reduce_time(zscore(X), n_components)
    white = whiten(reduced)
    result = fastica(white, contrast=contrast, tol=tol, max_iter=max_iter, n_init=n_init, seed=seed)
    return Decomposition(standardise_maps(result.W @ white), result.runs, explained)


def standardise_maps(S: Tensor) -> Tensor:
    """z-score each map over neurons and flip it so that its peak is positive.

    Args:
        S: (..., k, n_signals), any floating dtype.

    Returns:
        the same shape, float32.
    """
    Z = (S - S.mean(-1, keepdim=True)) / S.std(-1, keepdim=True, correction=0)
    flip = Z.amax(-1, keepdim=True) < -Z.amin(-1, keepdim=True)
    return Z.where(~flip, -Z).float()
