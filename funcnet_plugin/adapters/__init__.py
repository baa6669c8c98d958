"""Architecture knowledge: what the MLP of a model looks like. Mostly data, found through pluggy."""

from funcnet_plugin.adapters.layout import MLPBlock, ModelLayout, bind, count_parameters
from funcnet_plugin.adapters.manager import find_adapters, get_adapters, hookimpl
from funcnet_plugin.adapters.spec import MLPAdapter

__all__ = [
    "MLPAdapter",
    "MLPBlock",
    "ModelLayout",
    "bind",
    "count_parameters",
    "find_adapters",
    "get_adapters",
    "hookimpl",
]
