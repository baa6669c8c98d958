"""Knows the scorers that a recipe can name: ours, and those of other packages."""

from __future__ import annotations

from funcnet_plugin.measure.statistics import unknown_statistics
from funcnet_plugin.plugins import Registry
from funcnet_plugin.score import elimination, from_atlas, networks, scorer, single
from funcnet_plugin.score.scorer import Scorer

SCORERS = Registry(
    "scorer",
    Scorer,
    scorer,
    [single, elimination, networks, from_atlas],
    problem=lambda part: unknown_statistics(part.needs),
)
