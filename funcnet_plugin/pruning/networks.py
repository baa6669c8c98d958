"""Functional-network scores: groups of samples -> ICA -> a running score per neuron.

The paper thresholds each map (abs(z) > t), calls a neuron kept if any map of any group says so (OR
of masks), and tunes t by hand until the ratio fits. OR of thresholded masks is the threshold of the
maximum, so one running maximum per neuron holds every ratio at once, in one float per neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.ica import Decomposition, RunReport

AGGREGATES = ("max", "mean")


@dataclass(frozen=True)
class GroupReport:
    """What the ICA of one group of samples said about itself."""

    n_tokens: int
    n_components: int
    explained_variance: float
    runs: tuple[RunReport, ...]


def map_scores(maps: Tensor, channels: int) -> Tensor:
    """Score of each neuron in one group.

    Args:
        maps: (n_runs, k, channels * width), z-scored over neurons; channel-major: all neurons of
            the first channel, then all of the second.
        channels: signals per neuron.

    Returns:
        (width,), float64: mean over runs (starts) of the maximum over components and channels of
        abs(z). With one run this is the paper's quantity before thresholding.
    """
    peak = maps.abs().amax(1)  # (n_runs, channels * width)
    return peak.unflatten(1, (channels, -1)).amax(1).double().mean(0)


class NetworkScorer:
    """Gathers the signals of one layer and scores its neurons, group by group.

    Memory: the signals of one group in their own dtype, and one float64 per neuron.

    Args:
        width: neurons of the layer.
        channels: signals per neuron.
        samples_per_group: samples whose tokens enter one ICA run.
        aggregate: "max" over groups (the paper) or "mean" (less dependent on the starts).
        decompose: ICA of one (n_tokens, channels * width) matrix.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        samples_per_group: int,
        aggregate: str,
        decompose: Callable[[Tensor], Decomposition],
    ) -> None:
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {AGGREGATES}, got {aggregate!r}")
        self.reports: list[GroupReport] = []
        self._channels = channels
        self._samples_per_group = samples_per_group
        self._aggregate = aggregate
        self._decompose = decompose
        self._group: list[Tensor] = []
        self._score = torch.zeros(width, dtype=torch.float64)

    def add(self, signals: Tensor) -> None:
        """One sample: (n_tokens, channels * width), padding removed, any floating dtype."""
        self._group.append(signals)
        if len(self._group) == self._samples_per_group:
            X = torch.cat(self._group)
            self._group.clear()
            self._add_group(X)

    def _add_group(self, X: Tensor) -> None:
        result = self._decompose(X)
        score = map_scores(result.maps, self._channels).cpu()
        if self._aggregate == "max":
            self._score = torch.maximum(self._score, score)
        else:
            self._score += score
        self.reports.append(
            GroupReport(X.shape[0], result.maps.shape[1], result.explained_variance, result.runs)
        )

    @property
    def leftover_samples(self) -> int:
        """Samples that did not fill a group. They count for the moments, not for the networks:
        a smaller group would weigh as much as a full one in the maximum."""
        return len(self._group)

    @property
    def score(self) -> Tensor:
        """(width,), float64. Needs at least one full group."""
        if not self.reports:
            raise ValueError("no full group of samples was added")
        return self._score / len(self.reports) if self._aggregate == "mean" else self._score
