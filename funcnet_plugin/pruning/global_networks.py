"""Networks across all layers: one decomposition per group of samples.

Calibration goes through the model layer by layer, all samples each time. So every group is reduced
along its time axis as the layers pass (`LayeredSignals`), and the ICA of all groups comes when the
last layer was seen: every layer is measured on the dense model, and pruning follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.bars import bar
from funcnet_plugin.ica import ICAResult, LayeredSignals, stability, standardise, whiten
from funcnet_plugin.ica.canica import standardise_maps
from funcnet_plugin.pruning.networks import AGGREGATES, GroupReport, in_turn, map_scores
from funcnet_plugin.pruning.processes import Processes


@dataclass
class GlobalNetworks:
    """What the layers share.

    Args:
        n_components: networks per group, over all layers.
        n_rows: see `LayeredSignals`.
        samples_per_group, aggregate, min_stability: see `NetworkScorer`.
        solve: ICA of one whitened matrix.
    """

    n_components: int
    n_rows: int
    samples_per_group: int
    aggregate: str
    min_stability: float
    solve: Callable[[Tensor], ICAResult]
    reports: list[GroupReport] = field(default_factory=list)
    _groups: list[LayeredSignals] = field(default_factory=list)
    _scores: dict[int, Tensor] = field(default_factory=dict)
    _channels: dict[int, int] = field(default_factory=dict)

    def layer(self, index: int, channels: int) -> LayerFeed:
        """Where the signals of one layer go."""
        self._channels[index] = channels
        return LayerFeed(self, index)

    def add_group(self, number: int, layer: int, blocks: list[Tensor]) -> None:
        if number == len(self._groups):
            self._groups.append(LayeredSignals(self.n_rows))
        self._groups[number].add(layer, standardise(blocks))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The groups as far as the layers have come, and what was found in those that are done."""
        tensors = {f"score/{layer}": score for layer, score in self._scores.items()}
        facts = []
        for number, group in enumerate(self._groups):
            mine, variance = group.state()
            tensors |= {f"{number}/{key}": value for key, value in mine.items()}
            facts.append(variance)
        return tensors, {"variances": facts, "reports": [asdict(r) for r in self.reports]}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._groups = []
        for number, variance in enumerate(facts["variances"]):
            group = LayeredSignals(self.n_rows)
            prefix = f"{number}/"
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            group.load_state(mine, variance)
            self._groups.append(group)
        self._scores = {
            int(key.removeprefix("score/")): tensor
            for key, tensor in tensors.items()
            if key.startswith("score/")
        }
        self.reports = [GroupReport.from_state(report) for report in facts["reports"]]

    def scores(self, processes: Processes | None = None) -> dict[int, Tensor]:
        """layer -> (width,), float64, comparable across layers. Runs the ICA of all groups.

        Args:
            processes: others that have groups of their own.
        """
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {AGGREGATES}, got {self.aggregate!r}")
        for _ in bar(range(len(self._groups)), "networks across layers", "group"):
            self._decompose(self._groups.pop(0))
        if processes is not None:
            merge = processes.max if self.aggregate == "max" else processes.sum
            self._scores = {layer: merge(score) for layer, score in self._scores.items()}
            self.reports = in_turn(processes.gather(self.reports))
        n = len(self.reports) if self.aggregate == "mean" else 1
        return {layer: score / n for layer, score in self._scores.items()}

    def _decompose(self, group: LayeredSignals) -> None:
        n_tokens = group.n_tokens
        C, columns, explained = group.reduce(self.n_components)
        del group
        white = whiten(C)
        del C
        result = self.solve(white)
        stable = stability(result.W)
        counted = stable >= self.min_stability if self.min_stability > 0 else None
        found: dict[int, Tensor] = {}
        outside = []
        for i, W in enumerate(result.W):  # one start at a time: maps of all layers are large
            maps = standardise_maps(W @ white)
            for layer, part in columns.items():
                mine = map_scores(
                    maps[None, :, part],
                    self._channels[layer],
                    None if counted is None else counted[i : i + 1],
                ).cpu()
                found[layer] = found.get(layer, 0.0) + mine / len(result.W)
            energy = torch.stack([maps[:, part].square().sum(1) for part in columns.values()])
            outside.append(float((1.0 - energy.amax(0) / energy.sum(0)).mean()))
        for layer, score in found.items():
            before = self._scores.get(layer)
            if before is None:
                self._scores[layer] = score
            elif self.aggregate == "max":
                self._scores[layer] = torch.maximum(before, score)
            else:
                self._scores[layer] = before + score
        self.reports.append(
            GroupReport(
                n_tokens,
                white.shape[0],
                explained,
                float(stable.median()),
                result.runs,
                sum(outside) / len(outside),
                most_stable=float(stable.max()),
            )
        )


class LayerFeed:
    """Gathers the samples of one layer into groups; stands where `NetworkScorer` does."""

    def __init__(self, networks: GlobalNetworks, index: int) -> None:
        self._networks, self._index = networks, index
        self._blocks: list[Tensor] = []
        self._n_groups = 0
        self.leftover_samples = 0

    def add(self, signals: Tensor) -> None:
        """One sample: (n_tokens, channels * width), padding removed, any floating dtype."""
        self._blocks.append(signals)
        self.leftover_samples += 1
        if self.leftover_samples == self._networks.samples_per_group:
            blocks, self._blocks, self.leftover_samples = self._blocks, [], 0
            self._networks.add_group(self._n_groups, self._index, blocks)
            self._n_groups += 1

    def drop_unfinished(self) -> None:
        """Forget the signals of samples that fill no group; they stay counted."""
        self._blocks = []

    def state(self) -> dict[str, Any]:
        """Plain values of a layer that was seen to the end; what it added is in the groups."""
        return {"leftover_samples": self.leftover_samples, "n_groups": self.n_groups}

    def load_state(self, state: dict[str, Any]) -> None:
        self._n_groups, self.leftover_samples = state["n_groups"], state["leftover_samples"]

    def merge(self, processes: Processes) -> None:
        """The groups are merged when they have scores."""
        self._n_groups = sum(processes.gather(self._n_groups))
        self.leftover_samples = sum(processes.gather(self.leftover_samples))

    @property
    def n_groups(self) -> int:
        return self._n_groups

    @property
    def reports(self) -> list[GroupReport]:
        """Those of all layers together: there is one decomposition per group."""
        return self._networks.reports
