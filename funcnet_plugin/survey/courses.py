"""Measures how active each network is at each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from funcnet_plugin.ica.columns import ColumnMoments
from funcnet_plugin.survey.blocks import BlockNetworks
from funcnet_plugin.survey.sweep import Seen, Watched

# A network is active at a token where its course is this far above its mean, in deviations.
ACTIVE = 2.0


class Courses:
    """Adds up time courses as the text goes through the layers.

    The courses are the least-squares weights of the maps in the standardised signals of each token,
    ``a_t = z_t' S' (S S')^-1``; of an ICA, whose maps are uncorrelated, ``z_t' S' / n_signals``.

    Args:
        blocks: whose networks they are.
        moments: layer -> over the whole text; its signals that were decomposed stand first.
        names: layer -> its signals.
        n_tokens: of the text.

    Attributes:
        by_block: name -> (n_tokens, k), float32.
    """

    def __init__(
        self,
        blocks: Sequence[BlockNetworks],
        moments: Mapping[int, ColumnMoments],
        names: Mapping[int, Sequence[str]],
        n_tokens: int,
    ) -> None:
        self._blocks, self._moments, self._names = blocks, moments, names
        self._position = dict.fromkeys(names, 0)
        # maps that depend on each other have many solutions; this is the smallest
        self._inverse = {
            b.name: torch.linalg.pinv(b.maps.double() @ b.maps.double().T, hermitian=True)
            for b in blocks
        }
        self._ready: tuple[int, list[tuple[BlockNetworks, Tensor, Tensor]]] = (-1, [])
        self.by_block = {b.name: torch.zeros(n_tokens, len(b.maps)) for b in blocks}

    def add(self, unit: Watched, sample: Seen) -> None:
        """Take one sample of one layer in."""
        signals = sample.joined(self._names[unit.index])
        start = self._position[unit.index]
        end = self._position[unit.index] = start + len(signals)
        for block, weights, offset in self._weights(unit.index, signals.device):
            part = signals.float() @ weights - offset
            self.by_block[block.name][start:end] += part.cpu()

    def _weights(
        self, layer: int, device: torch.device
    ) -> list[tuple[BlockNetworks, Tensor, Tensor]]:
        """Give what one layer's raw signals are multiplied with; kept until the next layer."""
        if self._ready[0] != layer:
            moments = self._moments[layer]
            found = []
            for block in self._blocks:
                if layer in block.layers:
                    maps = block.maps[:, block.layers[layer]].double()
                    n = maps.shape[1]
                    mean, scale = moments.mean[:n].cpu(), moments.scale[:n].cpu()
                    weights = (maps * scale).T @ self._inverse[block.name]
                    offset = mean @ weights
                    found.append((block, weights.float().to(device), offset.float().to(device)))
            self._ready = (layer, found)
        return self._ready[1]


def standardised(courses: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise courses over time.

    Args:
        courses: (n_tokens, k).

    Returns:
        the same with mean 0 and deviation 1, float32; (k,), the share of the variance of all
        signals that each network makes.
    """
    mean, std = courses.mean(0), courses.std(0, correction=0)
    share = std.square()
    return (courses - mean) / std.clamp_min(torch.finfo(torch.float32).tiny), share


def correlations(courses: Tensor, other: Tensor) -> Tensor:
    """Correlate standardised courses, (n_tokens, k), with one figure of each token, (n_tokens,)."""
    other = other.float() - other.float().mean()
    norm = other.norm()
    if not norm > 0:
        return torch.zeros(courses.shape[1])
    return courses.T @ other / (norm * len(courses) ** 0.5)
