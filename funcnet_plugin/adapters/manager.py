"""Finds adapters: the built-in ones and those of installed packages, through the same hook."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import pluggy

from funcnet_plugin.adapters import builtin, hookspecs
from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.plugins.hooks import PROJECT, is_ours, load_plugins, warn_skipped

ENTRY_POINT_GROUP = "funcnet_plugin.adapters"


@dataclass(frozen=True)
class FoundAdapter:
    """Says where an adapter comes from and what it is used for.

    Attributes:
        adapter: as its plugin gave it.
        source: the package that brought it, with the entry point's name if it is not ours.
        architectures: those that this adapter is used for; others went to an earlier plugin.
    """

    adapter: MLPAdapter
    source: str
    architectures: tuple[str, ...]


@cache
def get_manager() -> pluggy.PluginManager:
    """Load the plugins, when they are first asked for."""
    return load_plugins(ENTRY_POINT_GROUP, hookspecs, [builtin])


def find_adapters() -> list[FoundAdapter]:
    """List the adapters that are used for something: of plugins first, then the built-in ones.

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
            warn_skipped(hook.plugin_name, error)
            continue
        for adapter in adapters:
            new = tuple(name for name in adapter.architectures if name not in taken)
            for name in set(adapter.architectures) - set(new):
                if not is_ours(hook.plugin_name):
                    warnings.warn(
                        f"{taken[name]} and {hook.plugin_name} both bring an adapter for {name}; "
                        f"that of {taken[name]} is used: uninstall the one you do not want.",
                        stacklevel=2,
                    )
            taken |= dict.fromkeys(new, hook.plugin_name)
            if new:
                source = PROJECT if is_ours(hook.plugin_name) else hook.plugin_name
                found.append(FoundAdapter(adapter, source, new))
    return found


def get_adapters() -> dict[str, MLPAdapter]:
    """Map architectures (model class names) to adapters; a plugin's wins over a built-in one."""
    return {name: found.adapter for found in find_adapters() for name in found.architectures}
