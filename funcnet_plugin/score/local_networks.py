"""Finds networks within each layer: one decomposition per layer and group of samples."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import ticking
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.ica import SignalStream
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.sample import Sample
from funcnet_plugin.score.groups import (
    Found,
    GroupNetworks,
    GroupReport,
    map_scores,
    over_groups,
)
from funcnet_plugin.score.network_scorer import NetworkScorer
from funcnet_plugin.score.scorer import Evidence, Scoring, Setting


class LocalNetworks(Scoring):
    """Scores the neurons of each layer by the networks of that layer.

    Args:
        found: is told of the networks of each group.
    """

    scorer: NetworkScorer

    def __init__(self, scorer: NetworkScorer, setting: Setting, found: Found | None = None) -> None:
        super().__init__(scorer, setting)
        self._found = found

    def watch(self, unit: Unit) -> NetworkWatch:
        return NetworkWatch(unit, self.scorer, self.setting, self._found)

    def score(self, evidence: Evidence) -> Tensor:
        watch = evidence.watch
        self.scorer.check_groups_seen(watch)
        return watch.score

    def report(self, unit: Unit, watch: NetworkWatch) -> dict[str, Any]:
        return self.scorer.report(unit, watch)


class NetworkWatch:
    """Gathers the signals of one unit and scores its neurons, group by group.

    Samples that do not fill a group are counted as `leftover_samples`: a smaller group would weigh
    as much as a full one.

    Memory: the signals of one group in their own dtype, or what the setting allows, and one float64
    per neuron.

    Args:
        unit: whose signals.
        scorer: its parameters say how.
        setting: of the run.
        found: see `LocalNetworks`.

    Attributes:
        reports: one for each group.
    """

    def __init__(
        self, unit: Unit, scorer: NetworkScorer, setting: Setting, found: Found | None = None
    ) -> None:
        self.reports: list[GroupReport] = []
        self._found = found
        self.leftover_samples = 0
        self._unit, self._scorer, self._setting = unit, scorer, setting
        self._names = scorer.signals_of(unit)
        self._new_stream = partial(
            SignalStream, len(self._names) * unit.width, scorer.n_rows, setting.max_bytes
        )
        self._stream = self._new_stream()
        self._score = torch.zeros(unit.width, dtype=torch.float64)

    def add(self, sample: Sample) -> None:
        """Take one sample in; the last of a group starts its decomposition."""
        self._stream.add(sample.joined(self._names))
        self.leftover_samples += 1
        if self.leftover_samples == self._scorer.samples_per_group:
            stream, self._stream = self._stream, self._new_stream()
            self.leftover_samples = 0
            self._add_group(stream)

    def rest(self) -> None:
        """Let go of the signals of samples that fill no group; they stay counted."""
        self._stream = self._new_stream()

    def _add_group(self, stream: SignalStream) -> None:
        scorer, layer = self._scorer, self._unit.index
        with ticking(f"networks of layer {layer}, group {self.n_groups + 1}"):
            result = scorer.decomposer.decompose(
                stream.finish(), scorer.n_components, self._setting.seed
            )
        if self._found is not None:
            best = int(result.stability.mean(1).argmax())
            maps, layers = result.maps[best].cpu(), {layer: slice(None)}
            explained = result.explained_variance
            self._found(GroupNetworks(maps, layers, result.stability[best].cpu(), explained))
        score = map_scores(result.maps, len(self._names)).cpu()
        if scorer.aggregate == "max":
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
            )
        )

    def state(self) -> dict[str, Any]:
        """Give plain values of a unit that was seen to the end, its score left out."""
        reports = [asdict(report) for report in self.reports]
        return {"leftover_samples": self.leftover_samples, "reports": reports}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.leftover_samples = state["leftover_samples"]
        self.reports = [GroupReport.from_state(report) for report in state["reports"]]

    def merge(self, processes: Processes) -> None:
        """Take the groups of the other processes in."""
        scores = {self._unit.index: self._score}
        merged, self.reports = over_groups(scores, self.reports, self._scorer.aggregate, processes)
        self._score = merged[self._unit.index]
        self.leftover_samples = processes.total(self.leftover_samples)

    @property
    def n_groups(self) -> int:
        """Count the groups that were seen."""
        return len(self.reports)

    @property
    def score(self) -> Tensor:
        """Give the score of each neuron, (width,), float64."""
        if not self.reports:
            raise CalibrationError("no full group of samples was seen, so there are no networks.")
        mean = self._scorer.aggregate == "mean"
        return self._score / len(self.reports) if mean else self._score
