"""Prunes large language models by functional networks, inside the tools people already use.

    import funcnet_plugin
    from llmcompressor import oneshot
    oneshot(model=..., recipe="recipes/ica_prune.yaml", dataset=..., output_dir=...)

Importing the package costs milliseconds: the public names below are imported on first use, and
llm-compressor learns the modifiers when it is imported itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from funcnet_plugin.hosts.autoload import install as _install

if TYPE_CHECKING:  # for type checkers: the names below are imported on first use
    from funcnet_plugin.adapters import MLPAdapter, bind
    from funcnet_plugin.checkpoints.block import read_block
    from funcnet_plugin.errors import FuncnetError
    from funcnet_plugin.hosts.llmcompressor.modifiers import (
        FunctionalNetworkModifier,
        WidthPruningModifier,
    )
    from funcnet_plugin.ica import canica, fastica
    from funcnet_plugin.ica.decomposer import Decomposer
    from funcnet_plugin.plugins import hookimpl
    from funcnet_plugin.pruning import prune
    from funcnet_plugin.repair.repair import Repair
    from funcnet_plugin.score.scorer import Scorer

__version__ = "0.1.0"

_PUBLIC = {
    "FunctionalNetworkModifier": "funcnet_plugin.hosts.llmcompressor.modifiers",
    "WidthPruningModifier": "funcnet_plugin.hosts.llmcompressor.modifiers",
    "MLPAdapter": "funcnet_plugin.adapters",
    "bind": "funcnet_plugin.adapters",
    "hookimpl": "funcnet_plugin.plugins",
    "Scorer": "funcnet_plugin.score.scorer",
    "Repair": "funcnet_plugin.repair.repair",
    "Decomposer": "funcnet_plugin.ica.decomposer",
    "canica": "funcnet_plugin.ica",
    "fastica": "funcnet_plugin.ica",
    "prune": "funcnet_plugin.pruning",
    "read_block": "funcnet_plugin.checkpoints.block",
    "FuncnetError": "funcnet_plugin.errors",
}

__all__ = [
    "Decomposer", "FuncnetError", "FunctionalNetworkModifier", "MLPAdapter", "Repair", "Scorer",
    "WidthPruningModifier", "__version__", "bind", "canica", "fastica", "hookimpl", "prune",
    "read_block",
]  # fmt: skip

_install()


if not TYPE_CHECKING:  # a checker would take any name to be there

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
