"""Knows the decomposers that a recipe can name: ours, nilearn's, and those of other packages."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from funcnet_plugin.ica import baselines, decomposer
from funcnet_plugin.ica.canica import SOLVERS, Decomposition
from funcnet_plugin.ica.cost import whitening_bytes
from funcnet_plugin.ica.decomposer import Decomposer
from funcnet_plugin.ica.nilearn_canica import nilearn_canica
from funcnet_plugin.ica.runs import ICAResult
from funcnet_plugin.ica.signals import Signals
from funcnet_plugin.ica.stream import TruncatedSignals
from funcnet_plugin.plugins import Registry, hookimpl

# Starts times groups that a mean score needs: the correlation of the scores of two seeds is about
# 1 / (1 + 1 / that number), measured on real signals, so this gives 0.98.
_STARTS_OF_ALL_GROUPS = 64
# One start tells nothing of stability.
_FEWEST_STARTS = 2
# Where the number of groups is not known, or nothing is averaged over them.
_STARTS = 16
# Evaluations of the contrast that one start takes on real signals, at the default tolerance.
_EVALUATIONS = 50


class CanICA(Decomposer):
    """Runs our CanICA.

    :param solver: `picard` (fast) or `fastica` (the paper's); both have the same fixed points.
    :param contrast: of the ICA: `cube`, `logcosh` or `exp`.
    :param max_iter: iterations per start.
    :param tol: convergence tolerance. A tenth of it takes twice the time and hardly changes scores:
        those of two seeds correlate 0.978 instead of 0.975 (16 starts, two groups).
    :param n_init: starts per group; scores are averaged over them. One start is a lottery. `auto`
        takes as many as make 64 with those of the other groups, 2 at least, and 16 where scores are
        not averaged over groups or their number is not known.
    """

    name = "canica"
    source = "Varoquaux et al. 2010, doi:10.1016/j.neuroimage.2010.02.010"

    solver: Literal[tuple(SOLVERS)] = "picard"
    contrast: Literal["cube", "logcosh", "exp"] = "cube"
    max_iter: int = Field(default=300, ge=1)
    tol: float = Field(default=1.0e-3, gt=0.0)
    n_init: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    def for_groups(self, n_groups: int | None) -> CanICA:
        if self.n_init != "auto":
            return self
        starts = _STARTS
        if n_groups:
            starts = max(_FEWEST_STARTS, math.ceil(_STARTS_OF_ALL_GROUPS / n_groups))
        return self.model_copy(update={"n_init": starts})

    @property
    def _starts(self) -> int:
        return self.for_groups(None).n_init

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        parameters = self.for_groups(None).model_dump(exclude={"solver"})
        return SOLVERS[self.solver](white, seed=seed, **parameters)

    def _rotation_bytes(self, n_signals: int, n_components: int) -> int:
        size, starts = n_components * n_signals, self._starts
        white = whitening_bytes(n_signals, n_components)
        # picard keeps parts of the sources only; fastica those of all starts, in float64
        rotating = 4 * 8 * size * starts if self.solver == "fastica" else 2 * 4 * size
        # all maps are put together, and their absolute values are taken
        return white + max(rotating, 4 * size * (2 * starts + 4))

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        rotation = 4.0 * n_components**2 * n_signals * self._starts * _EVALUATIONS
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


DECOMPOSERS = Registry("decomposer", Decomposer, decomposer, [sys.modules[__name__], baselines])
