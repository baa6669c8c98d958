"""Parts of another package, there for as long as a test wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from funcnet_plugin.plugins import Part, Registry, hookimpl
from funcnet_plugin.score.scorer import Evidence, Scorer


class Early(Scorer):
    """Needs the first neurons most."""

    name = "early"

    def score(self, evidence: Evidence) -> Tensor:
        return -torch.arange(evidence.unit.width).double()


class Late(Scorer):
    """Needs the last neurons most."""

    name = "late"

    def score(self, evidence: Evidence) -> Tensor:
        return torch.arange(evidence.unit.width).double()


def module_with(registry: Registry, *parts: type[Part]) -> ModuleType:
    """A module that brings these parts, as a package names it in the registry's entry points."""
    module = ModuleType("brings")
    hook = f"funcnet_{registry.group.rpartition('.')[2]}"
    setattr(module, hook, hookimpl(lambda: list(parts)))
    return module


@contextmanager
def bringing(registry: Registry, *parts: type[Part], source: str = "mine") -> Iterator[None]:
    """Let the registry have these parts meanwhile."""
    registry.manager.register(module_with(registry, *parts), name=source)
    try:
        yield
    finally:
        registry.manager.unregister(name=source)
