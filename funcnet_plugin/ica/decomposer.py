"""Defines decomposers: parts that find the networks of one group of signals."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from funcnet_plugin.ica.canica import Decomposition, decompose_by
from funcnet_plugin.ica.cost import reduction_bytes, reduction_operations, whitening_bytes
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
    """Stands at the base of all decomposers.

    One has a `name` and implements `rotate`: signals are reduced and whitened before it, and maps
    standardised after it. One that does all of this itself implements `decompose` instead; it is
    then for networks within layers, and for signals that fit into memory.
    """

    @property
    def rotates(self) -> bool:
        """Whether it implements `rotate`, which networks across layers need."""
        return type(self).rotate is not Decomposer.rotate

    @property
    def takes_truncated(self) -> bool:
        """Whether it takes `TruncatedSignals`, which a recipe's `max_memory` makes."""
        return type(self).decompose is Decomposer.decompose

    @classmethod
    def lacks(cls) -> str | None:
        base = Decomposer
        finds = cls.rotate is not base.rotate or cls.decompose is not base.decompose
        return None if finds else "implements neither rotate nor decompose"

    def for_groups(self, n_groups: int | None) -> Decomposer:
        """Decide what a recipe leaves to the number of groups whose scores are averaged.

        Args:
            n_groups: None where that is not known.

        Returns:
            a decomposer with every parameter decided; this one if all are.
        """
        return self

    def rotate(self, white: Tensor, seed: int) -> ICAResult:
        """Rotate whitened signals into independent components.

        Args:
            white: (k, n_signals), floating, of unit covariance over the signals.
            seed: of random starts.

        Returns:
            for each start a rotation W, (n_starts, k, k) orthonormal: ``W @ white`` are the maps,
            of either sign; and a `RunReport` for each start.

        Raises:
            DecompositionError: no start gave finite maps.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rotate.")

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
        return decompose_by(partial(self.rotate, seed=seed), signals, n_components)

    def working_bytes(self, n_tokens: int, n_signals: int, n_components: int) -> int:
        """Count the bytes that `decompose` takes at its peak, beside the signals: to plan with.

        The default is that of the reduction and of the rotation of one start.

        Args:
            n_tokens, n_signals: shape of the signals.
            n_components: see `decompose`.
        """
        reduction = reduction_bytes(n_tokens, n_signals, n_components)
        return max(reduction, self._rotation_bytes(n_signals, n_components))

    def _rotation_bytes(self, n_signals: int, n_components: int) -> int:
        maps = 8 * n_components * n_signals
        return whitening_bytes(n_signals, n_components) + 5 * maps

    def operations(self, n_tokens: int, n_signals: int, n_components: int) -> float:
        """Count the multiplications and additions of `decompose`, roughly: to plan with.

        The default is the reduction alone.
        """
        return reduction_operations(n_tokens, n_signals, n_components)
