"""Finds adapters: the built-in ones and those of installed plugins, through the same hook."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

import pluggy

from funcnet_plugin.adapters import builtin, hookspecs
from funcnet_plugin.adapters.hookspecs import PROJECT, hookimpl
from funcnet_plugin.adapters.spec import MLPAdapter

ENTRY_POINT_GROUP = "funcnet_plugin.adapters"

__all__ = [
    "ENTRY_POINT_GROUP",
    "FoundAdapter",
    "find_adapters",
    "get_adapters",
    "get_manager",
    "hookimpl",
]


@dataclass(frozen=True)
class FoundAdapter:
    """Attributes:
    adapter: as its plugin gave it.
    source: the package that brought it, with the entry point's name if it is not ours.
    architectures: those that this adapter is used for; others went to an earlier plugin.
    """

    adapter: MLPAdapter
    source: str
    architectures: tuple[str, ...]


@cache
def get_manager() -> pluggy.PluginManager:
    """The plugin manager, entry points loaded on first use.

    Entry points are loaded one by one: pluggy's own loader lets the exception of one broken plugin
    take all others down.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name=PROJECT)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        package = entry_point.dist.name if entry_point.dist else "unknown package"
        source = f"{package} ({entry_point.name})"
        try:
            manager.register(entry_point.load(), name=source)
        except Exception as error:
            # Foreign code may raise anything; the user keeps all other adapters and the reason.
            _warn_skipped(f"{source}, module {entry_point.value},", error)
    return manager


def find_adapters() -> list[FoundAdapter]:
    """Every adapter that is used for something: those of plugins first, then the built-in ones.

    What a plugin names wins over the built-in adapter. Of two plugins the one that pluggy asks
    first wins, and a warning names both.
    """
    found: list[FoundAdapter] = []
    taken: dict[str, str] = {}  # architecture -> source
    # As pluggy calls them: the last in the list first.
    for hook in reversed(get_manager().hook.funcnet_adapters.get_hookimpls()):
        try:
            adapters = tuple(hook.function())
            wrong = [a for a in adapters if not isinstance(a, MLPAdapter)]
            if wrong:
                raise TypeError(f"funcnet_adapters gave {wrong[0]!r}, which is not an MLPAdapter")
        except Exception as error:
            _warn_skipped(hook.plugin_name, error)
            continue
        for adapter in adapters:
            new = tuple(name for name in adapter.architectures if name not in taken)
            for name in set(adapter.architectures) - set(new):
                if hook.plugin_name != PROJECT:
                    warnings.warn(
                        f"{taken[name]} and {hook.plugin_name} both bring an adapter for {name}; "
                        f"that of {taken[name]} is used: uninstall the one you do not want.",
                        stacklevel=2,
                    )
            taken |= dict.fromkeys(new, hook.plugin_name)
            if new:
                found.append(FoundAdapter(adapter, hook.plugin_name, new))
    return found


def get_adapters() -> dict[str, MLPAdapter]:
    """Architecture (model class name) -> adapter; a plugin's wins over a built-in one."""
    return {name: found.adapter for found in find_adapters() for name in found.architectures}


def _warn_skipped(source: str, error: Exception) -> None:
    warnings.warn(
        f"adapter plugin {source} is skipped: {type(error).__name__}: {error}", stacklevel=3
    )
