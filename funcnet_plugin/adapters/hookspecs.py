"""What a plugin can add."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from funcnet_plugin.adapters.spec import MLPAdapter

PROJECT = "funcnet_plugin"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def funcnet_adapters() -> Iterable[MLPAdapter]:
    """Return the adapters that this plugin brings. They win over the built-in ones."""
