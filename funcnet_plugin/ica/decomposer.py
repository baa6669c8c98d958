"""Defines decomposers: parts that find the networks of one group of signals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from funcnet_plugin.ica.canica import Decomposition
from funcnet_plugin.ica.runs import ICAResult
from funcnet_plugin.ica.signals import Signals
from funcnet_plugin.ica.stream import TruncatedSignals
from funcnet_plugin.plugins import Part, hookspec


@hookspec
def funcnet_decomposers() -> Iterable[type[Decomposer]]:
    """Return the decomposers that this package brings: classes that derive from `Decomposer`.

    A plugin is a module with a function of this name, marked with `funcnet_plugin.hookimpl`, and
    named in the entry-point group `funcnet_plugin.decomposers` of its package. A name that is taken
    already is refused.
    """


class Decomposer(Part):
    """Serves as the base of all decomposers. One has a `name` and implements `decompose`.

    Attributes:
        takes_truncated: whether `decompose` also takes `TruncatedSignals`, which a recipe's
            `max_memory` makes.
        rotates: whether it implements `rotate`, which networks across layers need.
    """

    takes_truncated: ClassVar[bool] = False
    rotates: ClassVar[bool] = False

    def decompose(
        self, signals: Signals | TruncatedSignals, n_components: int, seed: int
    ) -> Decomposition:
        """Find the networks of one group of samples.

        Args:
            signals: standardised, (n_tokens, n_signals).
            n_components: how many networks; the result may have fewer.
            seed: of random starts.

        Raises:
            DecompositionError: the signals cannot be decomposed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decompose.")

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        """Rotate whitened signals, (k, n_signals), into independent components.

        Raises:
            DecompositionError: no start gave finite maps.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rotate.")
