"""Measures how far from Gaussian a source is: the contrasts that the solvers climb."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def _cube(Y: Tensor) -> tuple[Tensor, Tensor]:
    square = Y * Y
    return Y * square, 3.0 * square.mean(-1)


def _logcosh(Y: Tensor) -> tuple[Tensor, Tensor]:
    tanh = torch.tanh(Y)
    return tanh, 1.0 - (tanh * tanh).mean(-1)


def _exp(Y: Tensor) -> tuple[Tensor, Tensor]:
    square = Y * Y
    bell = torch.exp(-0.5 * square)
    return Y * bell, ((1.0 - square) * bell).mean(-1)


# name -> function of Y (..., k, n) giving g(Y), same shape, and the mean of g'(Y), (..., k)
CONTRASTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "cube": _cube,
    "logcosh": _logcosh,
    "exp": _exp,
}

# The antiderivative G of each contrast and its expectation under a standard normal.
_NEGENTROPY: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "cube": (lambda S: S.square().square() / 4.0, 0.75),
    "logcosh": (lambda S: torch.logaddexp(S, -S) - np.log(2.0), 0.3745672075),
    "exp": (lambda S: -torch.exp(-0.5 * S * S), -float(np.sqrt(0.5))),
}


def negentropy(S: Tensor, contrast: str) -> Tensor:
    """Compute the contrast that FastICA climbs, to compare solutions.

    It is the mean over components of ``|E G(s) - E G(nu)|``, nu standard normal.

    Args:
        S: (..., k, n) unit-variance sources.

    Returns:
        (...), larger is further from Gaussian.
    """
    G, gaussian = _NEGENTROPY[contrast]
    return (G(S).mean(-1) - gaussian).abs().mean(-1)


def expectation(Y: Tensor, gY: Tensor, contrast: str) -> Tensor:
    """Compute E G(y) of every row.

    Args:
        Y: (..., k, n) sources.
        gY: g(Y), which the solver has anyway; of the cube it gives G.

    Returns:
        (..., k).
    """
    if contrast == "cube":
        return torch.einsum("...n,...n->...", gY, Y) / (4.0 * Y.shape[-1])
    return _NEGENTROPY[contrast][0](Y).mean(-1)
