"""Parts of another package, there for as long as a test wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.surgery import set_output_weight
from funcnet_plugin.measure.moments import damping
from funcnet_plugin.measure.workload import Bytes
from funcnet_plugin.plugins import Part, Registry, hookimpl
from funcnet_plugin.repair.least_squares import LeastSquares
from funcnet_plugin.repair.pruned_layer import PrunedLayer
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


class Refitted(LeastSquares):
    """Works behind pruned layers: down projections make up for what the hidden states lack."""

    name = "refitted"
    behind_pruned_layers: ClassVar[bool] = True

    continuations: int = Field(default=0, ge=0)

    @property
    def windows_to_write(self) -> int:
        return self.continuations

    def refit(self, layer: PrunedLayer) -> dict[str, float]:
        weight = layer.unit.output_weight.double().clone()
        second, cross = weight.new_zeros(2 * weight.shape[1:]), torch.zeros_like(weight)
        for missing, of_token in layer.missing():
            h, error = missing.h.double(), missing.error.double()
            second += of_token * h.T @ h
            cross += of_token * error.T @ h
        if layer.processes is not None:
            second, cross = layer.processes.sum(second), layer.processes.sum(cross)
        second.diagonal().add_(damping(second, self.ridge))
        change = torch.linalg.solve(second, cross.T).T / layer.gain
        set_output_weight(layer.unit, weight + change)
        return {"refitted": float(change.norm() / weight.norm())}

    def refit_bytes(self, unit: Unit, kept: int, tokens: int) -> Bytes:
        return Bytes(device=8 * (2 * kept**2 + 3 * unit.hidden_size * kept))


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
