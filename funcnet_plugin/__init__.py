"""Prunes large language models by functional networks, inside the tools people already use.

    import funcnet_plugin
    from llmcompressor import oneshot
    oneshot(model=..., recipe="recipes/ica_prune.yaml", dataset=..., output_dir=...)

Importing the package costs milliseconds: the public names below are imported on first use, and
llm-compressor learns the modifiers when it is imported itself.
"""

from importlib import import_module

from funcnet_plugin.hosts.autoload import install as _install

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

__all__ = ["__version__", *_PUBLIC]

_install()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
