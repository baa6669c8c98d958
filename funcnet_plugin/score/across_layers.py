"""Finds networks across layers: one decomposition per window of layers and group of samples.

Calibration goes through the model layer by layer, all samples each time. So every group is reduced
along its time axis as the layers pass (`LayeredSignals`), and the ICA of all groups comes when the
last layer was seen: every layer is measured on the dense model, and pruning follows.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar, ticking
from funcnet_plugin.ica import LayeredSignals, stability, standardise, whiten
from funcnet_plugin.ica.canica import standardise_maps
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


class NetworksAcrossLayers(Scoring):
    """Scores neurons by networks that reach over several layers, or all.

    Args:
        found: is told of the networks of each group.

    Attributes:
        reports: first layer of a window -> one for each group.
    """

    scorer: NetworkScorer

    def __init__(self, scorer: NetworkScorer, setting: Setting, found: Found | None = None) -> None:
        super().__init__(scorer, setting)
        self._found = found
        self.reports: dict[int, list[GroupReport]] = {}
        self._groups: dict[int, list[LayeredSignals]] = {}
        self._scores: dict[int, Tensor] = {}
        self._n_signals: dict[int, int] = {}
        self._n_rows = 3 * scorer.n_components

    def watch(self, unit: Unit) -> LayerFeed:
        names = self.scorer.signals_of(unit)
        self._n_signals[unit.index] = len(names)
        self.reports.setdefault(self.window_of(unit.index), [])
        return LayerFeed(self, unit.index, names)

    def window_of(self, layer: int) -> int:
        """Give the number of the layer that the window of a layer begins with."""
        n = self.scorer.window
        return 0 if n is None else layer // n * n

    def score(self, evidence: Evidence) -> None:
        self.scorer.check_groups_seen(evidence.watch)

    def report(self, unit: Unit, watch: LayerFeed) -> dict[str, Any]:
        return self.scorer.report(unit, watch)

    def add_group(self, number: int, layer: int, blocks: list[Tensor]) -> None:
        """Take in the signals of one layer for one group."""
        groups = self._groups.setdefault(self.window_of(layer), [])
        if number == len(groups):
            groups.append(LayeredSignals(self._n_rows))
        with ticking(f"reducing signals of layer {layer}, group {number + 1}"):
            groups[number].add(layer, standardise(blocks))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give the groups as far as the layers have come, and the scores once they are found."""
        tensors = {f"score/{layer}": score for layer, score in self._scores.items()}
        variances: dict[str, list[float]] = {}
        for window, groups in self._groups.items():
            for number, group in enumerate(groups):
                mine, variance = group.state()
                tensors |= {f"{window}/{number}/{key}": value for key, value in mine.items()}
                variances.setdefault(str(window), []).append(variance)
        reports = {str(w): [asdict(r) for r in found] for w, found in self.reports.items()}
        return tensors, {"variances": variances, "reports": reports}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._groups = {}
        for window, variances in facts["variances"].items():
            for number, variance in enumerate(variances):
                group = LayeredSignals(self._n_rows)
                start = f"{window}/{number}/"
                mine = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
                group.load_state(mine, variance)
                self._groups.setdefault(int(window), []).append(group)
        self._scores = {
            int(key.removeprefix("score/")): tensor
            for key, tensor in tensors.items()
            if key.startswith("score/")
        }
        self.reports = {
            int(window): [GroupReport.from_state(report) for report in found]
            for window, found in facts["reports"].items()
        }

    def scores(self, processes: Processes | None = None) -> dict[int, Tensor]:
        """Run the ICA of all groups.

        Args:
            processes: others that have groups of their own.

        Returns:
            layer -> (width,), float64, comparable across layers.
        """
        logger.info("all layers were measured; finding networks across them")
        todo = [window for window, groups in self._groups.items() for _ in groups]
        for window in bar(todo, "networks across layers", "group"):
            self._decompose(window, self._groups[window].pop(0))
        self._groups.clear()
        aggregate = self.scorer.aggregate
        if processes is not None:
            for window, reports in self.reports.items():
                mine = {i: s for i, s in self._scores.items() if self.window_of(i) == window}
                merged, self.reports[window] = over_groups(mine, reports, aggregate, processes)
                self._scores |= merged
        if aggregate != "mean":
            return self._scores
        return {i: s / len(self.reports[self.window_of(i)]) for i, s in self._scores.items()}

    def _decompose(self, window: int, group: LayeredSignals) -> None:
        n_tokens = group.n_tokens
        C, columns, explained = group.reduce(self.scorer.n_components)
        del group
        white = whiten(C)
        del C
        result = self.scorer.decomposer.rotate(white, self.setting.seed)
        found: dict[int, Tensor] = {}
        outside = []
        white, stable = white.float(), stability(result.W)  # as maps are
        if self._found is not None:
            best = int(stable.mean(1).argmax())
            maps = standardise_maps(result.W[best].float() @ white).cpu()
            self._found(GroupNetworks(maps, columns, stable[best].cpu(), explained))
        for W in result.W:  # one start at a time: maps of all layers are large
            maps = standardise_maps(W.float() @ white)
            for layer, part in columns.items():
                mine = map_scores(maps[None, :, part], self._n_signals[layer]).cpu()
                found[layer] = found.get(layer, 0.0) + mine / len(result.W)
            energy = torch.stack([maps[:, part].square().sum(1) for part in columns.values()])
            outside.append(float((1.0 - energy.amax(0) / energy.sum(0)).mean()))
        for layer, score in found.items():
            before = self._scores.get(layer)
            if before is None:
                self._scores[layer] = score
            elif self.scorer.aggregate == "max":
                self._scores[layer] = torch.maximum(before, score)
            else:
                self._scores[layer] = before + score
        self.reports[window].append(
            GroupReport(
                n_tokens,
                white.shape[0],
                explained,
                float(stable.median()),
                result.runs,
                sum(outside) / len(outside),
            )
        )


class LayerFeed:
    """Gathers the samples of one layer into groups; stands where `NetworkWatch` does."""

    def __init__(self, networks: NetworksAcrossLayers, index: int, names: list[str]) -> None:
        self._networks, self._index, self._names = networks, index, names
        self._blocks: list[Tensor] = []
        self.n_groups = 0
        self.leftover_samples = 0

    def add(self, sample: Sample) -> None:
        """Take one sample in."""
        self._blocks.append(sample.joined(self._names))
        self.leftover_samples += 1
        if self.leftover_samples == self._networks.scorer.samples_per_group:
            blocks, self._blocks, self.leftover_samples = self._blocks, [], 0
            self._networks.add_group(self.n_groups, self._index, blocks)
            self.n_groups += 1

    def rest(self) -> None:
        """Let go of the signals of samples that fill no group; they stay counted."""
        self._blocks = []

    def state(self) -> dict[str, Any]:
        """Give plain values of a layer that was seen to the end; what it added is in the groups."""
        return {"leftover_samples": self.leftover_samples, "n_groups": self.n_groups}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.n_groups, self.leftover_samples = state["n_groups"], state["leftover_samples"]

    def merge(self, processes: Processes) -> None:
        """Count the groups of all processes; they are merged when they have scores."""
        self.n_groups = processes.total(self.n_groups)
        self.leftover_samples = processes.total(self.leftover_samples)

    @property
    def reports(self) -> list[GroupReport]:
        """Give those of the layer's window: there is one decomposition per group."""
        return self._networks.reports[self._networks.window_of(self._index)]
