"""What a plugin can add."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from funcnet_plugin.adapters.spec import MLPAdapter

PROJECT = "funcnet_plugin"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def funcnet_scorers() -> Iterable[Any]:
    """Return the scorers that this plugin brings, `funcnet_plugin.pruning.scorers.Scorer` objects.

    In the same module and entry-point group as `funcnet_adapters`; a plugin has either or both. A
    name that is taken already is refused.
    """


@hookspec
def funcnet_adapters() -> Iterable[MLPAdapter]:
    """Return the adapters that this plugin brings.

    A plugin is a module with a function of this name, marked with `funcnet_plugin.hookimpl`, and
    named in the entry-point group `funcnet_plugin.adapters` of its package. It is called without
    arguments, and should neither load models nor import transformers' modelling code. For an
    architecture (model class name) that both name, it wins over the built-in adapter. If it raises,
    it is skipped with a warning that names it.
    """
