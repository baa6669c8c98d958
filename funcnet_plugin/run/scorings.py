"""Asks all scorers of one run, each for what it declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.statistics import LayerStatistics
from funcnet_plugin.score.checks import checked_scores
from funcnet_plugin.score.scorer import Evidence, Scorer, Scoring, Setting

Scores = dict[str, Tensor]  # name of the scorer -> (width,)


class Scorings:
    """Holds the scorers of one run at work.

    Args:
        scorers: of the recipe.
        setting: of the run.
    """

    def __init__(self, scorers: Sequence[Scorer], setting: Setting) -> None:
        self._each = [scorer.begin(setting) for scorer in scorers]

    @property
    def across(self) -> Scoring | None:
        """Find the scorer that works across layers, if there is one."""
        return next((s for s in self._each if s.scorer.across_layers), None)

    def new_statistics(self, unit: Unit, moments: Moments | None) -> LayerStatistics:
        """Start the statistics of a unit.

        Args:
            moments: to be gone on with; None where nothing needs them.
        """
        watches = {scoring.scorer.name: scoring.watch(unit) for scoring in self._each}
        return LayerStatistics(moments, {n: w for n, w in watches.items() if w is not None})

    def of_layer(
        self, unit: Unit, measured: LayerStatistics, ahead: Mapping[str, Any], seed: int
    ) -> Scores:
        """Score one unit by all scorers that do not wait for the other layers.

        Args:
            measured: of the calibration text.
            ahead: name -> what is known of the unit besides.
            seed: of the recipe.

        Raises:
            NumbersError: a score is not finite.
        """
        known = dict(ahead)
        if measured.moments is not None:
            known["moments"] = measured.moments
        found = {}
        for scoring in self._each:
            scorer = scoring.scorer
            known["samples"] = measured.watches.get(scorer.name)
            statistics = {name: known[name] for name in scorer.needs}
            score = scoring.score(Evidence(unit, seed, statistics))
            if not scorer.across_layers:
                found[scorer.name] = score
        return checked_scores(unit, found)

    def of_all_layers(
        self, units: Sequence[Unit], processes: Processes | None
    ) -> dict[int, Scores]:
        """Score by the scorer that works across layers, once all are measured.

        Returns:
            layer -> its score; empty where there is no such scorer.
        """
        if (across := self.across) is None:
            return {}
        scores, name = across.scores(processes), across.scorer.name
        return {unit.index: checked_scores(unit, {name: scores[unit.index]}) for unit in units}

    def report(self, unit: Unit, measured: LayerStatistics) -> dict[str, Any]:
        """Say what all scorers found out about a unit: plain values."""
        found: dict[str, Any] = {}
        for scoring in self._each:
            found |= scoring.report(unit, measured.watches.get(scoring.scorer.name))
        return found
