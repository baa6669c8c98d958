"""Makes functional networks the scorer that a recipe names."""

from __future__ import annotations

from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.score.across_layers import NetworksAcrossLayers
from funcnet_plugin.score.groups import Found
from funcnet_plugin.score.local_networks import LocalNetworks
from funcnet_plugin.score.network_scorer import NetworkScorer
from funcnet_plugin.score.scorer import Scorer, Scoring, Setting


class Networks(NetworkScorer):
    """Keeps the neurons of functional networks; see `NetworkScorer` for the parameters."""

    name = "networks"
    source = "arXiv 2508.05239"

    def begin(self, setting: Setting, found: Found | None = None) -> Scoring:
        """Start to work in one run.

        Args:
            found: is told of the networks of each group, as they are found.
        """
        way = NetworksAcrossLayers if self.across_layers else LocalNetworks
        return way(self.decided(setting), setting, found)


@hookimpl
def funcnet_scorers() -> list[type[Scorer]]:
    return [Networks]
