"""Runs CanICA on one matrix of neuron signals: reduction, whitening, ICA, maps.

Varoquaux et al. 2010 (doi:10.1016/j.neuroimage.2010.02.010); for neurons: arXiv 2508.05239. One
matrix is one group, so the group step of CanICA reduces to one decomposition, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from funcnet_plugin.ica.fastica import fastica
from funcnet_plugin.ica.picard import picard
from funcnet_plugin.ica.runs import ICAResult, RunReport
from funcnet_plugin.ica.signals import Signals, reduce_time, standardise, whiten
from funcnet_plugin.ica.stream import TruncatedSignals

SOLVERS = {"picard": picard, "fastica": fastica}


@dataclass(frozen=True)
class Decomposition:
    """Holds the functional networks of one matrix of signals.

    Attributes:
        maps: (n_runs, k, n_signals), float32, z-scored over neurons, the peak of each positive.
        runs: how each start ended.
        explained_variance: share of the signals' variance inside the k reduced dimensions, 0 to 1;
            NaN where the decomposer does not tell.
        stability: (n_runs, k), 0 to 1: see `stability`; NaN where there is one run only.
    """

    maps: Tensor
    runs: tuple[RunReport, ...]
    explained_variance: float
    stability: Tensor


def canica(
    X: Tensor | Sequence[Tensor] | Signals | TruncatedSignals,
    n_components: int,
    *,
    solver: str = "picard",
    contrast: str = "cube",
    tol: float = 1e-3,
    max_iter: int = 300,
    n_init: int = 1,
    seed: int = 0,
) -> Decomposition:
    """Find functional networks: groups of neurons that act together over tokens.

    Args:
        X: (n_tokens, n_signals), any floating dtype, or blocks of its rows; the raw signals of one
            group of samples. Or what stands for them, see `SignalStream`.
        n_components: number of networks, k. The result has fewer where the signals do not span k
            directions.
        solver: "picard" or "fastica"; the fixed points are the same.
        contrast, tol, max_iter, n_init, seed: see `fastica`.

    Raises:
        DecompositionError: as `standardise`, `reduce_time` and the solver.
    """
    signals = X if isinstance(X, (Signals, TruncatedSignals)) else standardise(X)
    solve = partial(
        SOLVERS[solver], contrast=contrast, tol=tol, max_iter=max_iter, n_init=n_init, seed=seed
    )
    return decompose_by(solve, signals, n_components)


def decompose_by(
    rotate: Callable[[Tensor], ICAResult],
    signals: Signals | TruncatedSignals,
    n_components: int,
) -> Decomposition:
    """Reduce and whiten signals, rotate them, and standardise the maps.

    Args:
        rotate: whitened signals (k, n_signals) -> rotations, one for each start.
        signals: standardised.
        n_components: see `canica`.

    Raises:
        DecompositionError: as `reduce_time` and `rotate`.
    """
    reduced, explained = reduce_time(signals, n_components)
    white = whiten(reduced)
    result = rotate(white)
    narrow = white.float()  # as maps are
    maps = torch.stack([standardise_maps(W.float() @ narrow) for W in result.W])
    return Decomposition(maps, result.runs, explained, stability(result.W))


def stability(W: Tensor) -> Tensor:
    """Measure how well each network is found again from the other starts.

    That is the correlation of a network's map with the most similar one of another start, averaged
    over the other starts (after ICASSO, Himberg & Hyvarinen 2003; of white data the correlation of
    two maps is the product of their rows of W).

    Args:
        W: (n_runs, k, k), orthonormal.

    Returns:
        (n_runs, k), 0 to 1; NaN for one run.
    """
    n = len(W)
    found = sum((W @ other.mT).abs().amax(-1) for other in W)
    return (found - 1.0) / (n - 1) if n > 1 else torch.full_like(found, torch.nan)


def standardise_maps(S: Tensor) -> Tensor:
    """Standardise each map over neurons and flip it so that its peak is positive.

    Args:
        S: (..., k, n_signals), any floating dtype.

    Returns:
        the same shape, float32.
    """
    Z = (S - S.mean(-1, keepdim=True)) / S.std(-1, keepdim=True, correction=0)
    flip = Z.amax(-1, keepdim=True) < -Z.amin(-1, keepdim=True)
    return Z.where(~flip, -Z).float()
