"""Functional-network pruning as a modifier."""

from __future__ import annotations

from pydantic import Field

from funcnet_plugin.hosts.llmcompressor.width_pruning import Named, WidthPruningModifier


class FunctionalNetworkModifier(WidthPruningModifier):
    """Keeps the neurons of a model's functional networks (arXiv 2508.05239), cuts the others.

    It is `WidthPruningModifier` with `scorer: networks`, which has the fields and says what they
    mean; the parameters of the networks are those of `score.network_scorer.NetworkScorer`.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            FunctionalNetworkModifier:
              pruning_ratio: 0.2
              scorer: {name: networks, n_components: 128}
    """

    scorer: Named | list[Named] = Field(default="networks", validate_default=True)
