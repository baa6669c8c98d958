"""Makes llm-compressor's recipes know our modifiers, whatever is imported first.

llm-compressor has no discovery of other packages, and importing it just to register would make
``import funcnet_plugin`` cost seconds. So its factory is patched when it is imported, and our
modifiers are imported when a recipe names them: at that point llm-compressor is fully loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_FACTORY = "llmcompressor.modifiers.factory"
MODIFIER_NAMES = frozenset({"FunctionalNetworkModifier", "WidthPruningModifier"})


def install() -> None:
    """Patch the factory now if it is loaded, else as soon as it is; calling twice is harmless."""
    module = sys.modules.get(_FACTORY)
    if module is not None and hasattr(module, "ModifierFactory"):
        _patch(module)
    elif not any(isinstance(finder, _FactoryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FactoryFinder())


def _patch(module: ModuleType) -> None:
    factory = module.ModifierFactory
    create = factory.create
    if getattr(create, "_funcnet", False):
        return

    def create_with_plugin(type_: str, *args, **kwargs):
        if type_ in MODIFIER_NAMES and type_ not in factory._registered_registry:
            from funcnet_plugin.hosts.llm_compressor import register

            register()
        return create(type_, *args, **kwargs)

    create_with_plugin._funcnet = True
    factory.create = staticmethod(create_with_plugin)


class _FactoryFinder(MetaPathFinder):
    """Lets the ordinary finders find the factory module, and patches it once it has run.

    It stays in place afterwards: a test runner may drop the module and import it again.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _FACTORY:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _PatchingLoader(spec.loader)
                return spec
        return None


class _PatchingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _patch(module)

    def __getattr__(self, name: str):
        # inspect.getsource and importlib.resources ask the real loader
        return getattr(self._loader, name)
