"""Puts the networks of several groups of samples together: which stand for all, how alike they are.

Networks that were found together, in one layer or in several, are a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.score.groups import GroupNetworks


@dataclass
class BlockNetworks:
    """Holds the networks of one block: those of the group that the others agree with most.

    Attributes:
        name: `L3`, `L3-5` or `ALL`.
        layers: number of a layer -> its part of the signals.
        maps: (k, n_signals), float32, see `GroupNetworks`.
        between_starts: (k,), how well each is found again from other starts, 0 to 1; NaN where
            there was one start.
        between_groups: (k,), the same in other samples; NaN where there was one group.
        explained: share of the signals' variance that was decomposed.
    """

    name: str
    layers: dict[int, slice]
    maps: Tensor
    between_starts: Tensor
    between_groups: Tensor
    explained: float

    def put_in_order(self, order: Tensor) -> None:
        """Sort the networks; `order` lists them, (k,), int64."""
        self.maps = self.maps[order]
        self.between_starts = self.between_starts[order]
        self.between_groups = self.between_groups[order]


def put_together(name: str, groups: Sequence[GroupNetworks]) -> BlockNetworks:
    """Take the group whose networks are found again best in all others.

    Args:
        groups: of one block, at least one.
    """
    agreement = [
        [group_agreement(mine.maps, other.maps) for other in groups if other is not mine]
        for mine in groups
    ]
    if len(groups) == 1:
        best, between = groups[0], torch.full((len(groups[0].maps),), torch.nan)
    else:
        means = [torch.stack(found).mean(0) for found in agreement]
        number = max(range(len(groups)), key=lambda i: float(means[i].mean()))
        best, between = groups[number], means[number]
    return BlockNetworks(name, best.layers, best.maps, best.stability, between, best.explained)


def group_agreement(mine: Tensor, other: Tensor) -> Tensor:
    """Correlate each map with the most similar one of another set.

    Args:
        mine, other: (k, n_signals) and (k', n_signals), z-scored.

    Returns:
        (k,), 0 to 1; the sign of a map means nothing.
    """
    return (mine @ other.T / mine.shape[1]).abs().amax(1)
