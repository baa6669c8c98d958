"""Planted truth: signals mixed from known networks."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def planted(
    k: int = 8, neurons: int = 4000, tokens: int = 600, noise: float = 12.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Signals X (tokens, neurons) of k super-Gaussian networks, and the maps to find in them.

    Noise carries most of each neuron's variance, as it does in real signals; it averages out of the
    k-dimensional space with the number of tokens. The maps are returned as z-scoring scales them.
    """
    rng = np.random.default_rng(seed)
    maps = rng.laplace(size=(k, neurons))
    courses = np.linalg.qr(rng.standard_normal((tokens, k)))[0] * np.sqrt(tokens)
    X = courses @ maps + rng.standard_normal((tokens, neurons)) * noise
    return torch.from_numpy(X), torch.from_numpy(maps / X.std(0))


def correlation(A: Tensor, B: Tensor) -> Tensor:
    """(len(A), len(B)): absolute correlation between the rows of A and of B."""
    A, B = (M.double() - M.double().mean(1, keepdim=True) for M in (A, B))
    A, B = (torch.nn.functional.normalize(M, dim=1) for M in (A, B))
    return (A @ B.T).abs()


def assert_signed_permutation(C: Tensor, above: float) -> None:
    """Each row matches one column and no two rows the same one."""
    best = C.max(1)
    assert sorted(best.indices.tolist()) == list(range(len(C)))
    assert best.values.min() > above, best.values
