"""Holds what networks within and across layers share: scores and reports of one group.

The paper thresholds each map (abs(z) > t), calls a neuron kept if any map of any group says so (OR
of masks), and tunes t by hand until the ratio fits. OR of thresholded masks is the threshold of the
maximum, so one running maximum per neuron holds every ratio at once, in one float per neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor

from funcnet_plugin.ica import RunReport
from funcnet_plugin.measure.processes import Processes


@dataclass(frozen=True)
class GroupReport:
    """Holds what the ICA of one group of samples said about itself."""

    n_tokens: int
    n_components: int
    explained_variance: float
    stability: float  # median over networks and starts; NaN for one start
    runs: tuple[RunReport, ...]
    # of networks across layers: share of a map's energy outside its strongest layer, mean
    outside_strongest_layer: float | None = None

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GroupReport:
        """Make one of what `dataclasses.asdict` gave."""
        return cls(**state | {"runs": tuple(RunReport(**run) for run in state["runs"])})


@dataclass(frozen=True)
class GroupNetworks:
    """Holds the networks of one group of samples, of the start that most others agree with.

    Attributes:
        maps: (k, n_signals of all layers), float32, z-scored over neurons, the peak of each
            positive; of each layer all neurons of the first signal, then all of the second.
        layers: number of a layer -> its part of the signals.
        stability: (k,), 0 to 1, see `ica.stability`; NaN where there was one start only.
        explained: share of the signals' variance that was decomposed.
    """

    maps: Tensor
    layers: dict[int, slice]
    stability: Tensor
    explained: float


Found = Callable[[GroupNetworks], None]  # is told of the networks of each group


def map_scores(maps: Tensor, n_signals: int) -> Tensor:
    """Score each neuron in one group.

    Args:
        maps: (n_runs, k, n_signals * width), z-scored over neurons; all neurons of the first
            signal, then all of the second.
        n_signals: of each neuron.

    Returns:
        (width,), float64: mean over runs (starts) of the maximum over components and signals of
        abs(z). With one run this is the paper's quantity before thresholding.
    """
    peak = maps.abs().amax(1)  # (n_runs, n_signals * width)
    return peak.unflatten(1, (n_signals, -1)).amax(1).double().mean(0)


def over_groups(
    scores: dict[int, Tensor],
    reports: list[GroupReport],
    aggregate: str,
    processes: Processes,
) -> tuple[dict[int, Tensor], list[GroupReport]]:
    """Put together what all processes found in their groups.

    Args:
        scores: layer -> (width,), sum or maximum over this process's groups.
        reports: of its groups.
        aggregate: "max" or "mean".
    """
    merge = processes.max if aggregate == "max" else processes.sum
    # groups go around, so their reports are taken in turn
    turns = zip_longest(*processes.gather(reports))
    every = [report for turn in turns for report in turn if report is not None]
    return {layer: merge(score) for layer, score in scores.items()}, every
