"""Does for units what follows from their projections, whatever their pieces are."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters.projection import in_size, oriented, out_size, parameters_of


class ProjectedUnit(ABC):
    """Implements the part of `Unit` that does not depend on which rows and columns a piece owns.

    Attributes:
        name: see `Unit`.
    """

    name: str

    @property
    @abstractmethod
    def root(self) -> nn.Module:
        """Give the module that is called `name` and holds the projections."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[nn.Module, ...]: ...

    @property
    @abstractmethod
    def output(self) -> nn.Module: ...

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        return (*self.inputs, self.output)

    @property
    def weights(self) -> list[Tensor]:
        return [oriented(module, module.weight) for module in self.projections]

    @property
    def output_weight(self) -> Tensor:
        return oriented(self.output, self.output.weight)

    @property
    def n_columns(self) -> int:
        return in_size(self.output)

    @property
    def hidden_size(self) -> int:
        return out_size(self.output)

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.output.weight.dtype

    @property
    def parameters(self) -> int:
        return parameters_of(self.projections)

    def path_of(self, module: nn.Module) -> str:
        inside = next(name for name, m in self.root.named_modules() if m is module)
        return f"{self.name}.{inside}"
