"""Knows what the MLP of each architecture looks like: mostly data, found through pluggy."""

from funcnet_plugin.adapters.layout import ModelLayout, bind, count_parameters
from funcnet_plugin.adapters.manager import find_adapters, get_adapters
from funcnet_plugin.adapters.mlp import MLPBlock
from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.adapters.unit import Signal, Unit

__all__ = [
    "MLPAdapter",
    "MLPBlock",
    "ModelLayout",
    "Signal",
    "Unit",
    "bind",
    "count_parameters",
    "find_adapters",
    "get_adapters",
]
