"""Finds networks and scores while a text goes through the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from funcnet_plugin.ica.columns import ColumnMoments
from funcnet_plugin.score.groups import GroupNetworks, GroupReport
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.scorer import Evidence, Setting
from funcnet_plugin.survey.blocks import BlockNetworks, put_together
from funcnet_plugin.survey.sweep import Seen, Watched


class Search:
    """Gathers what a sweep hands over.

    Args:
        scorer: says how networks are found.
        setting: of the survey.
        wanted: the layers that are looked at.

    Attributes:
        moments: layer -> of all its signals over the whole text, those that are decomposed first.
        names: layer -> the signals that are decomposed.
        order: layer -> all its signals, as the moments have them.
        inner: layer -> of what enters the down projection; nothing where channels are no neurons.
    """

    def __init__(self, scorer: Networks, setting: Setting, wanted: Sequence[Watched]) -> None:
        self._scorer, self._setting = scorer, setting
        self._scoring = scorer.begin(setting, self._found)
        self._watches = {unit.index: self._scoring.watch(unit) for unit in wanted}
        self._groups: dict[str, list[GroupNetworks]] = {}
        self._scores: dict[int, Tensor] = {}
        self._reports: dict[int, list[GroupReport]] = {}
        self.order = {unit.index: self._all_names(unit) for unit in wanted}
        self.names = {unit.index: scorer.signals_of(unit) for unit in wanted}
        self.moments: dict[int, ColumnMoments] = {}
        self.inner: dict[int, ColumnMoments] = {}

    def _all_names(self, unit: Watched) -> list[str]:
        first = self._scorer.signals_of(unit)
        return [*first, *(name for name in unit.signals if name not in first)]

    def add(self, unit: Watched, sample: Seen) -> None:
        """Take one sample of one layer in."""
        signals = sample.joined(self.order[unit.index])
        for of_layer, seen in ((self.moments, signals), (self.inner, sample.inner)):
            if seen is None:
                continue
            if unit.index not in of_layer:
                of_layer[unit.index] = ColumnMoments(seen.shape[1], seen.device)
            of_layer[unit.index].add(seen)
        self._watches[unit.index].add(sample)

    def done(self, unit: Watched) -> None:
        """Score a layer that has seen all samples."""
        watch = self._watches[unit.index]
        score = self._scoring.score(Evidence(unit, self._setting.seed, {"samples": watch}))
        if score is not None and unit.index in self.inner:
            self._scores[unit.index] = score.cpu()
        watch.rest()

    def finish(self) -> tuple[list[BlockNetworks], dict[int, Tensor]]:
        """Give the networks of all blocks, and the scores of all layers whose neurons they are."""
        across = self._scoring.scores()
        self._scores |= {i: score.cpu() for i, score in across.items() if i in self.inner}
        self._reports = {index: watch.reports for index, watch in self._watches.items()}
        groups, self._groups = self._groups, {}
        return [put_together(name, found) for name, found in groups.items()], self._scores

    def report(self, block: BlockNetworks) -> dict[str, Any]:
        """Say how the decompositions of a block went: plain values."""
        reports = self._reports[next(iter(block.layers))]
        runs = [run for group in reports for run in group.runs]
        return {
            "groups": len(reports),
            "ica_runs": len(runs),
            "ica_runs_not_converged": sum(not run.converged for run in runs),
        }

    def _found(self, group: GroupNetworks) -> None:
        layers = list(group.layers)
        name = f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}-{layers[-1]}"
        if self._scorer.window is None:
            name = "ALL"
        self._groups.setdefault(name, []).append(group)
