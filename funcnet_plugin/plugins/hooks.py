"""Loads plugins, ours and those of other packages, through one hook for each kind of part."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pluggy

PROJECT = "funcnet_plugin"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def load_plugins(group: str, spec: Any, builtin: Sequence[ModuleType]) -> pluggy.PluginManager:
    """Register the modules that bring one kind of part.

    Entry points are loaded one by one: pluggy's own loader lets the exception of one broken plugin
    take all others down.

    Args:
        group: entry-point group in which packages name their modules.
        spec: object that holds the hook's specification.
        builtin: our own modules.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(spec)
    for module in builtin:
        manager.register(module, name=f"{PROJECT} ({module.__name__.rpartition('.')[2]})")
    for entry_point in entry_points(group=group):
        package = entry_point.dist.name if entry_point.dist else "unknown package"
        source = f"{package} ({entry_point.name})"
        try:
            manager.register(entry_point.load(), name=source)
        except Exception as error:
            # Foreign code may raise anything; the user keeps everything else and the reason.
            warn_skipped(f"{source}, module {entry_point.value},", error)
    return manager


def is_ours(source: str) -> bool:
    """Tell our own modules from those of other packages, by the name they are registered with."""
    return source.startswith(f"{PROJECT} (")


def warn_skipped(source: str, error: Exception) -> None:
    """Say that a plugin is left out and why."""
    warnings.warn(f"plugin {source} is skipped: {type(error).__name__}: {error}", stacklevel=3)
