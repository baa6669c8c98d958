"""Importance of single neurons: the effect of each on the output, and the controls.

Every function returns (width,), float64, larger is more important.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.pruning.compensation import Moments


def effect(block: MLPBlock, moments: Moments) -> Tensor:
    """A neuron's own effect on the output: variance of its activation times the squared norm of
    its column of down_proj (the WIFV score of FLAP, An et al. 2024, arXiv 2312.11983)."""
    norm = _squares(block.down).sum(0)
    return moments.variance.to(norm.device) * norm


def magnitude(block: MLPBlock) -> Tensor:
    """Norm of all weights of a neuron; no calibration data. A control."""
    rows = sum(_squares(module).sum(1) for module in block.inputs)
    if block.fused:
        rows = rows.unflatten(0, (2, block.width)).sum(0)
    return (rows + _squares(block.down).sum(0)).sqrt()


def _squares(module: nn.Module) -> Tensor:
    """(out, in), float64."""
    return oriented(module, module.weight.detach()).double().square()


def random(block: MLPBlock, seed: int) -> Tensor:
    """Uniform numbers, different in every layer. The control that each score must beat."""
    rng = np.random.default_rng([seed, block.index])
    return torch.from_numpy(rng.random(block.width))


def union_of_ranks(scores: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """A neuron goes only if no score needs it: the better of its ranks.

    Args:
        scores: scores[s][l] is score s of layer l, (width_l,). Ranks are taken over all layers
            given, so pass one layer for a decision per layer, all of them for one cut.

    Returns:
        per layer (width_l,), float64, in (0, 1].
    """
    sizes = [len(layer) for layer in scores[0]]
    best = None
    for layers in scores:
        values = torch.cat([layer.double().cpu() for layer in layers])
        order = torch.sort(values, stable=True).indices
        rank = torch.empty_like(values)
        rank[order] = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
        best = rank if best is None else torch.maximum(best, rank)
    return list(best.split(sizes))
