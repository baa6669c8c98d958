"""Draws random neurons to compare networks with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_like(
    neurons: Mapping[int, Tensor], widths: Mapping[int, int], seed: int
) -> dict[int, Tensor]:
    """Draw as many neurons of each layer, any of them.

    Args:
        neurons: layer -> those to be matched.
        widths: layer -> how many there are.
        seed: of the draw.

    Returns:
        layer -> neurons, ascending, int64; the same for the same arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in sorted(neurons):
        drawn = torch.randperm(widths[layer], generator=generator)[: len(neurons[layer])]
        found[layer] = drawn.sort().values
    return found
