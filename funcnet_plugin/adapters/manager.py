"""Finds adapters: the built-in ones and those of installed plugins, through the same hook."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import entry_points

import pluggy

from funcnet_plugin.adapters import builtin, hookspecs
from funcnet_plugin.adapters.hookspecs import hookimpl
from funcnet_plugin.adapters.spec import MLPAdapter

ENTRY_POINT_GROUP = "funcnet_plugin.adapters"

__all__ = ["ENTRY_POINT_GROUP", "get_adapters", "get_manager", "hookimpl"]


@cache
def get_manager() -> pluggy.PluginManager:
    """The plugin manager, entry points loaded on first use.

    Entry points are loaded one by one: pluggy's own loader lets the exception of one broken plugin
    take all others down.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name="builtin")
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            manager.register(entry_point.load(), name=entry_point.name)
        except Exception as error:
            # Foreign code may raise anything; the user keeps all other adapters and the reason.
            warnings.warn(
                f"adapter plugin {entry_point.name!r} ({entry_point.value}) is skipped: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
    return manager


def get_adapters() -> dict[str, MLPAdapter]:
    """Architecture (model class name) -> adapter; a plugin's wins over a built-in one."""
    found: dict[str, MLPAdapter] = {}
    for adapters in get_manager().hook.funcnet_adapters():
        for adapter in adapters:
            for architecture in adapter.architectures:
                found.setdefault(architecture, adapter)
    return found
