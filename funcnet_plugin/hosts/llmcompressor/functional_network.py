"""Prunes by functional networks, as a modifier."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.width_pruning import Named, WidthPruningModifier
from funcnet_plugin.score.from_atlas import FromAtlas
from funcnet_plugin.score.network_scorer import NetworkScorer
from funcnet_plugin.score.parts import SCORERS


class FunctionalNetworkModifier(WidthPruningModifier):
    """Keeps the neurons of a model's functional networks (arXiv 2508.05239), cuts the others.

    It is `WidthPruningModifier` with `scorer: networks`, which has the fields and says what they
    mean; the parameters of the networks are those of `score.network_scorer.NetworkScorer`. The
    scorer `atlas` takes networks that were found before. Other scorers may stand beside them in a
    list.

    Example recipe::

        prune_stage:
          pruning_modifiers:
            FunctionalNetworkModifier:
              pruning_ratio: 0.2
              scorer: {name: networks, n_components: 128}
    """

    scorer: Named | list[Named] = Field(default="networks", validate_default=True)

    @field_validator("scorer")
    @classmethod
    def _has_networks(cls, scorer: Any) -> Any:
        """Refuse scorers among which there are no networks: the name would promise them."""
        scorers = scorer if isinstance(scorer, list) else [scorer]
        if any(isinstance(SCORERS.make(one), NetworkScorer | FromAtlas) for one in scorers):
            return scorer
        names = ", ".join(one["name"] for one in scorers)
        raise RecipeError(
            f"scorer: {names or 'none'} has no networks in it; take WidthPruningModifier for it, "
            "or add networks"
        )
