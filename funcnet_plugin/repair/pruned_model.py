"""Shows a model whose layers are all cut, as a repair of the whole model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.predictions import Predicted
from funcnet_plugin.measure.processes import Processes


@dataclass(frozen=True)
class PrunedModel:
    """Holds a pruned model, and what the dense one predicted.

    Attributes:
        model: its layers are cut, and repaired by their own statistics.
        units: of all layers, in order.
        predicted: windows of the text, and what the dense model made of each.
        seed: of the recipe.
        processes: others that hold other windows.
    """

    model: nn.Module
    units: Sequence[Unit]
    predicted: Sequence[Predicted]
    seed: int
    processes: Processes | None
