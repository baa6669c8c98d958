"""Acts when a host program is imported, whoever imports it and whatever is imported first.

Hosts cannot discover us (llm-compressor, transformers) or only in their next release (lm-eval), and
importing them just to register would make `import torch` cost seconds. So a finder, stdlib only,
watches for some modules and calls a function of `arrivals` once each has run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# module of a host -> the function that is called with it, or its name in `arrivals`
WATCHED: dict[str, str | Callable[[ModuleType], None]] = {
    "llmcompressor.modifiers.factory": "teach_recipes",
    "llmcompressor.entrypoints.oneshot": "surround_oneshot",
    "lm_eval.models": "add_lm_eval_model",
    "transformers.modeling_utils": "build_layers_of_their_own_width",
    "transformers.models.auto.configuration_auto": "know_our_architectures",
}


def install() -> None:
    """Act on the hosts that are loaded, and watch for the others; calling twice is harmless."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watcher())
    for name in WATCHED:
        _look_for(name)


def watch(name: str, act: Callable[[ModuleType], None]) -> None:
    """Act on one more module, as soon as it is loaded; calling twice is harmless.

    For hosts that call us themselves, which must not have a module imported by us.
    """
    if name not in WATCHED:
        WATCHED[name] = act
        _look_for(name)


def _look_for(name: str) -> None:
    """Act on a module if it is loaded, or once it is if it is being loaded."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return
    if getattr(spec, "_initializing", False):
        spec.__class__ = _AnnouncingSpec
    else:
        _arrived(module)


def _arrived(module: ModuleType) -> None:
    """Act on a host that is there; a failure of ours must not become one of the host's."""
    try:
        act = WATCHED[module.__name__]
        if isinstance(act, str):
            act = getattr(import_module("funcnet_plugin.hosts.arrivals"), act)
        act(module)
    except Exception as error:
        warnings.warn(
            f"funcnet_plugin could not be added to {module.__name__} "
            f"({type(error).__name__}: {error}); this version of the host may be too new.",
            stacklevel=2,
        )


class _AnnouncingSpec(ModuleSpec):
    """Announces the end of an import that a module was in the middle of when we came.

    Hosts import torch, and torch imports us; no finder or loader is asked any more then. But the
    import system marks the end of an import in the spec, and that is where we act.
    """

    @property
    def _initializing(self) -> bool:
        return self.__dict__["_initializing"]

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            self.__class__ = ModuleSpec
            if self.name in sys.modules:  # else its import failed
                _arrived(sys.modules[self.name])


class _Watcher(MetaPathFinder):
    """Lets the ordinary finders find a watched module, and acts once it has run.

    It stays in place afterwards: a test runner may drop a module and import it again.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ReportingLoader(spec.loader)
                return spec
        return None


class _ReportingLoader(Loader):
    """Loads a module as its own loader does, and acts then."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _arrived(module)

    def __getattr__(self, name: str):
        # inspect.getsource and importlib.resources ask the real loader
        return getattr(self._loader, name)
