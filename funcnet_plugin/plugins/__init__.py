"""Lets packages add parts: entry points, hooks, and the parts that a recipe names."""

from funcnet_plugin.plugins.hooks import PROJECT, hookimpl, hookspec, load_plugins
from funcnet_plugin.plugins.part import Part, one_sentence
from funcnet_plugin.plugins.registry import FoundPart, Registry

__all__ = [
    "PROJECT",
    "FoundPart",
    "Part",
    "Registry",
    "hookimpl",
    "hookspec",
    "load_plugins",
    "one_sentence",
]
