"""Puts several scores together: a piece goes only if none of them needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from funcnet_plugin.score.checks import all_alike


def combined(layers: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Make one score of all that each layer has.

    Args:
        layers: scorer -> (width,), for each layer, the same scorers in all. Ranks are taken over
            all layers given, so pass one layer for a decision per layer, all of them for one cut.

    Returns:
        per layer (width,): the score itself where there is one scorer, else the better rank.
    """
    names = list(layers[0])
    if len(names) == 1:
        return [layer[names[0]] for layer in layers]
    return union_of_ranks([[layer[name] for layer in layers] for name in names])


def union_of_ranks(scores: list[list[Tensor]]) -> list[Tensor]:
    """Rank every piece by each score and take the better of its ranks.

    Args:
        scores: scores[s][l] is score s of layer l, (width_l,). Ranks are taken over all layers
            given, so pass one layer for a decision per layer, all of them for one cut.

    Returns:
        per layer (width_l,), float64, in (0, 1]; 0 where all scores are the same everywhere.
    """
    sizes = [len(layer) for layer in scores[0]]
    best = None
    for layers in scores:
        values = torch.cat([layer.double().cpu() for layer in layers])
        if all_alike(values):
            # it needs none more than another, and ranks by index would keep half of them for it
            best = torch.zeros_like(values) if best is None else best
            continue
        order = torch.sort(values, stable=True).indices
        rank = torch.empty_like(values)
        rank[order] = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
        best = rank if best is None else torch.maximum(best, rank)
    return list(best.split(sizes))
