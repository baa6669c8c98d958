"""Specifies the hook through which a package adds an architecture."""

from __future__ import annotations

from collections.abc import Iterable

from funcnet_plugin.adapters.spec import MLPAdapter
from funcnet_plugin.plugins import hookspec


@hookspec
def funcnet_adapters() -> Iterable[MLPAdapter]:
    """Return the adapters that this package brings.

    A plugin is a module with a function of this name, marked with `funcnet_plugin.hookimpl`, and
    named in the entry-point group `funcnet_plugin.adapters` of its package. It is called without
    arguments, and should neither load models nor import transformers' modelling code. For an
    architecture (model class name) that both name, it wins over the built-in adapter. If it raises,
    it is skipped with a warning that names it.
    """
