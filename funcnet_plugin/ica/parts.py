"""Knows the decomposers that a recipe can name: ours, nilearn's, and those of other packages."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field
from torch import Tensor

from funcnet_plugin.ica import decomposer
from funcnet_plugin.ica.canica import SOLVERS, Decomposition
from funcnet_plugin.ica.cost import whitening_bytes
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.ica.nilearn_canica import nilearn_canica
from funcnet_plugin.ica.picard import starts_together
from funcnet_plugin.ica.runs import ICAResult
from funcnet_plugin.ica.signals import Signals
from funcnet_plugin.ica.stream import TruncatedSignals
from funcnet_plugin.plugins import Registry, hookimpl

# Evaluations of the contrast that one start takes on real signals.
_EVALUATIONS = 95


class CanICA(Decomposer):
    """Runs our CanICA.

    :param solver: `picard` (fast) or `fastica` (the paper's); both have the same fixed points.
    :param contrast: of the ICA: `cube`, `logcosh` or `exp`.
    :param max_iter: iterations per start.
    :param tol: convergence tolerance.
    :param n_init: starts per group; scores are averaged over them. One start is a lottery.
    """

    name = "canica"
    source = "Varoquaux et al. 2010, doi:10.1016/j.neuroimage.2010.02.010"

    solver: Literal[tuple(SOLVERS)] = "picard"
    contrast: Literal["cube", "logcosh", "exp"] = "cube"
    max_iter: int = Field(default=300, ge=1)
    tol: float = Field(default=1.0e-4, gt=0.0)
    n_init: int = Field(default=16, ge=1)

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        return SOLVERS[self.solver](white, seed=seed, **self.model_dump(exclude={"solver"}))

    def _rotation_bytes(self, n_signals: int, n_components: int) -> int:
        size = n_components * n_signals
        white = whitening_bytes(n_signals, n_components)
        if self.solver == "fastica":
            rotating = 4 * 8 * size * self.n_init
        else:
            rotating = 4 * size * (1 + 4 * min(self.n_init, starts_together(size)))
        # all maps are put together, and their absolute values are taken
        return white + max(rotating, 4 * size * (2 * self.n_init + 8))

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        rotation = 4.0 * n_components**2 * n_signals * self.n_init * _EVALUATIONS
        return super().operations(n_tokens, n_signals, n_components) + rotation


class Nilearn(Decomposer):
    """Runs nilearn's own CanICA, the slow reference; what else there is to set is fixed inside it.

    :param n_init: starts per group, of which nilearn keeps one.
    """

    name = "nilearn"
    source = "nilearn.decomposition.CanICA"

    n_init: int = Field(default=10, ge=1)

    def decompose(
        self, signals: Signals | TruncatedSignals, n_components: int, seed: int
    ) -> Decomposition:
        return nilearn_canica(signals, n_components, n_init=self.n_init, seed=seed)

    def working_bytes(self, n_tokens: int, n_signals: int, n_components: int) -> int:
        copies = 4 * 4 * n_tokens * n_signals  # standardised, joined, and what nilearn makes of it
        return copies + self._rotation_bytes(n_signals, n_components)

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        rotation = 4.0 * n_components**2 * n_signals * self.n_init * 200  # its max_iter
        return super().operations(n_tokens, n_signals, n_components) + rotation


@hookimpl
def funcnet_decomposers() -> list[type[Decomposer]]:
    return [CanICA, Nilearn]


DECOMPOSERS = Registry("decomposer", Decomposer, decomposer, [sys.modules[__name__]])
