"""Lists our modifiers under their names in llm-compressor's recipes."""

from __future__ import annotations

from llmcompressor.modifiers import Modifier, ModifierFactory

from funcnet_plugin.hosts.llmcompressor.depth_pruning import DepthPruningModifier
from funcnet_plugin.hosts.llmcompressor.functional_network import FunctionalNetworkModifier
from funcnet_plugin.hosts.llmcompressor.hidden_slicing import HiddenSlicingModifier
from funcnet_plugin.hosts.llmcompressor.width_pruning import WidthPruningModifier

__all__ = [
    "MODIFIERS",
    "DepthPruningModifier",
    "FunctionalNetworkModifier",
    "HiddenSlicingModifier",
    "WidthPruningModifier",
    "register",
]

# A recipe is written back with the class name, so that is the name it must be read with.
MODIFIERS: dict[str, type[Modifier]] = {
    cls.__name__: cls
    for cls in (
        FunctionalNetworkModifier,
        WidthPruningModifier,
        DepthPruningModifier,
        HiddenSlicingModifier,
    )
}


def register() -> None:
    """Make the modifiers known to llm-compressor's recipes."""
    for name, cls in MODIFIERS.items():
        ModifierFactory.register(name, cls)
