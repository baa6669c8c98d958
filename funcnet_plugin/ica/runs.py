"""Holds what the solvers share: starting points, and the report of every start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.contrast import CONTRASTS


@dataclass(frozen=True)
class RunReport:
    """Says how one start ended. Nothing of it is hidden from the user: a run logs and saves it."""

    converged: bool
    n_iter: int | None  # None where the solver does not tell (nilearn)
    final_tolerance: float | None  # max_i |1 - |w_i' w_i_before||; compare with tol
    promoted: bool = False  # redone in float64 after float32 broke down
    damped_steps: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class ICAResult:
    """Holds what a solver found.

    Attributes:
        W: (n_init, k, k), the dtype of the input; ``S = W[i] @ X``.
        runs: one report per start.
    """

    W: Tensor
    runs: tuple[RunReport, ...]


def initial_unmixing(k: int, seed: int, start: int, attempt: int = 0) -> Tensor:
    """Draw (k, k) float64 standard normal; the same on every device, whatever else is drawn."""
    rng = np.random.default_rng([seed, start, attempt])
    return torch.from_numpy(rng.standard_normal((k, k)))


def starting_points(k: int, n_init: int, seed: int, given: Tensor | None) -> Tensor:
    """Draw (n_init, k, k) float64, or take what was given, (n_init, k, k) or (k, k)."""
    if given is not None:
        return given.reshape(-1, k, k)
    return torch.stack([initial_unmixing(k, seed, i) for i in range(n_init)])


def check_white(X: Tensor, contrast: str) -> None:
    """Refuse what no solver can work on.

    Raises:
        DecompositionError: X is not finite, or an unknown contrast.
    """
    if contrast not in CONTRASTS:
        raise DecompositionError(
            f"contrast {contrast!r} is not known; choose one of {', '.join(CONTRASTS)}."
        )
    if not torch.isfinite(X).all():
        raise DecompositionError("the whitened signals hold NaN or infinite values.")
