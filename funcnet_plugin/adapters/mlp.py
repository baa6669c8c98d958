"""Shows the neurons of one MLP as pieces that can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters.projected import ProjectedUnit
from funcnet_plugin.adapters.projection import (
    in_size,
    out_size,
    set_in_size,
    set_out_size,
)
from funcnet_plugin.adapters.unit import Signal


@dataclass(frozen=True)
class MLPBlock(ProjectedUnit):
    """Implements `Unit` with the neurons of the MLP of one decoder layer.

    Attributes:
        gate: None where it is part of `up` (`fused`) or where there is none.
        up, down: see `MLPAdapter`.
        fused: `up` holds the rows of the gate, then those of the up projection.
    """

    index: int
    name: str  # module path of the MLP in the model
    decoder_layer: nn.Module
    mlp: nn.Module
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    fused: bool
    activation: nn.Module

    @property
    def width(self) -> int:
        return in_size(self.down)

    @property
    def gated(self) -> bool:
        return self.fused or self.gate is not None

    @property
    def root(self) -> nn.Module:
        return self.mlp

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        return (self.up,) if self.gate is None else (self.gate, self.up)

    @property
    def output(self) -> nn.Module:
        return self.down

    @property
    def signals(self) -> dict[str, Signal]:
        """Give `act`, the activated gate, and `up`; an ungated MLP has its activation only."""
        found = {"act": Signal("outputs of the activation", self.activation)}
        if self.gated:
            half = slice(self.width, None) if self.fused else slice(None)
            found["up"] = Signal("outputs of the up projection", self.up, half)
        return found

    @property
    def parameters_per_piece(self) -> int:
        """Count a neuron's rows of gate and up (and their biases), and its column of down."""
        rows = sum(in_size(module) + (module.bias is not None) for module in self.inputs)
        return rows * (2 if self.fused else 1) + out_size(self.down)

    def rows_of(self, pieces: Tensor, module: nn.Module) -> Tensor:
        return torch.cat([pieces, pieces + self.width]) if self.fused else pieces

    def columns_of(self, pieces: Tensor) -> Tensor:
        return pieces

    def by_piece(self, of_columns: Tensor, of_rows: Sequence[Tensor] = ()) -> Tensor:
        if not of_rows:
            return of_columns
        total = sum(of_rows)
        if self.fused:
            total = total.unflatten(0, (2, self.width)).sum(0)
        return total + of_columns

    def resize(self, width: int) -> None:
        for module in self.inputs:
            set_out_size(module, (2 if self.fused else 1) * width)
        set_in_size(self.down, width)
        # Some modelling code keeps the width as a plain attribute as well.
        if isinstance(getattr(self.mlp, "intermediate_size", None), int):
            self.mlp.intermediate_size = width
