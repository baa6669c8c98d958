"""Functional-network scores: groups of samples -> ICA -> a running score per neuron.

The paper thresholds each map (abs(z) > t), calls a neuron kept if any map of any group says so (OR
of masks), and tunes t by hand until the ratio fits. OR of thresholded masks is the threshold of the
maximum, so one running maximum per neuron holds every ratio at once, in one float per neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.ica import (
    Decomposition,
    RunReport,
    Signals,
    SignalStream,
    TruncatedSignals,
)
from funcnet_plugin.pruning.processes import Processes

AGGREGATES = ("max", "mean")


@dataclass(frozen=True)
class GroupReport:
    """What the ICA of one group of samples said about itself."""

    n_tokens: int
    n_components: int
    explained_variance: float
    stability: float  # median over networks and starts; NaN for one start
    runs: tuple[RunReport, ...]
    # of networks across layers: share of a map's energy outside its strongest layer, mean
    outside_strongest_layer: float | None = None
    most_stable: float = float("nan")  # the stability of the network that has most

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GroupReport:
        """Of what `dataclasses.asdict` made of it."""
        return cls(**state | {"runs": tuple(RunReport(**run) for run in state["runs"])})


def map_scores(maps: Tensor, channels: int, counted: Tensor | None = None) -> Tensor:
    """Score of each neuron in one group.

    Args:
        maps: (n_runs, k, channels * width), z-scored over neurons; channel-major: all neurons of
            the first channel, then all of the second.
        channels: signals per neuron.
        counted: (n_runs, k), bool: the networks that count; all if None.

    Returns:
        (width,), float64: mean over runs (starts) of the maximum over components and channels of
        abs(z). With one run this is the paper's quantity before thresholding.
    """
    sizes = maps.abs()
    if counted is not None:
        sizes = torch.where(counted.unsqueeze(-1), sizes, 0.0)
    peak = sizes.amax(1)  # (n_runs, channels * width)
    return peak.unflatten(1, (channels, -1)).amax(1).double().mean(0)


def in_turn(reports: list[list[GroupReport]]) -> list[GroupReport]:
    """The reports of all processes in the order of the groups, which go around."""
    turns = zip_longest(*reports)
    return [report for turn in turns for report in turn if report is not None]


class NetworkScorer:
    """Gathers the signals of one layer and scores its neurons, group by group.

    Samples that do not fill a group are counted as `leftover_samples`: a smaller group would weigh
    as much as a full one.

    Memory: the signals of one group in their own dtype, or `max_bytes`, and one float64 per neuron.

    Args:
        width: neurons of the layer.
        channels: signals per neuron.
        samples_per_group: samples whose tokens enter one ICA run.
        aggregate: "max" over groups (the paper) or "mean" (less dependent on the starts).
        decompose: ICA of one group's signals, (n_tokens, channels * width).
        n_rows, max_bytes: see `SignalStream`.
        min_stability: networks less stable than this do not count.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        samples_per_group: int,
        aggregate: str,
        decompose: Callable[[Signals | TruncatedSignals], Decomposition],
        n_rows: int,
        max_bytes: int | None = None,
        min_stability: float = 0.0,
    ) -> None:
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {AGGREGATES}, got {aggregate!r}")
        self.reports: list[GroupReport] = []
        self._channels = channels
        self._samples_per_group = samples_per_group
        self._aggregate = aggregate
        self._decompose = decompose
        self._min_stability = min_stability
        self._new_stream = partial(SignalStream, channels * width, n_rows, max_bytes)
        self._stream = self._new_stream()
        self.leftover_samples = 0
        self._score = torch.zeros(width, dtype=torch.float64)

    def add(self, signals: Tensor) -> None:
        """One sample: (n_tokens, channels * width), padding removed, any floating dtype."""
        self._stream.add(signals)
        self.leftover_samples += 1
        if self.leftover_samples == self._samples_per_group:
            stream, self._stream = self._stream, self._new_stream()
            self.leftover_samples = 0
            self._add_group(stream)

    def drop_unfinished(self) -> None:
        """Forget the signals of samples that fill no group; they stay counted."""
        self._stream = self._new_stream()

    def _add_group(self, stream: SignalStream) -> None:
        result = self._decompose(stream.finish())
        counted = result.stability >= self._min_stability if self._min_stability > 0 else None
        score = map_scores(result.maps, self._channels, counted).cpu()
        if self._aggregate == "max":
            self._score = torch.maximum(self._score, score)
        else:
            self._score += score
        self.reports.append(
            GroupReport(
                stream.n_tokens,
                result.maps.shape[1],
                result.explained_variance,
                float(result.stability.median()),
                result.runs,
                most_stable=float(result.stability.max()),
            )
        )

    def state(self) -> dict[str, Any]:
        """Plain values of a layer that was seen to the end, but for its score."""
        reports = [asdict(report) for report in self.reports]
        return {"leftover_samples": self.leftover_samples, "reports": reports}

    def load_state(self, state: dict[str, Any]) -> None:
        self.leftover_samples = state["leftover_samples"]
        self.reports = [GroupReport.from_state(report) for report in state["reports"]]

    def merge(self, processes: Processes) -> None:
        """Take the groups of the other processes in."""
        merge = processes.max if self._aggregate == "max" else processes.sum
        self._score = merge(self._score)
        self.reports = in_turn(processes.gather(self.reports))
        self.leftover_samples = sum(processes.gather(self.leftover_samples))

    @property
    def n_groups(self) -> int:
        return len(self.reports)

    @property
    def score(self) -> Tensor:
        """(width,), float64. Needs at least one full group."""
        if not self.reports:
            raise ValueError("no full group of samples was added")
        return self._score / len(self.reports) if self._aggregate == "mean" else self._score
