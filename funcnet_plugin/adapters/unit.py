"""Describes what pruning cuts in one layer, from outside: pieces that can go one by one.

The neurons of an MLP (`adapters.mlp`) and the heads of an attention layer (`adapters.attention`)
are the implementations. Scores, surgery and repair ask for no more than this, so other pieces
(experts) need no more than a class with these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Signal:
    """Says where one signal of every piece can be read: in the output of a module.

    Attributes:
        what: it is, for a message about a unit.
        module: whose output holds it.
        columns: which of its last dimension, one for each piece.
    """

    what: str
    module: nn.Module
    columns: slice = field(default_factory=lambda: slice(None))


class Unit(Protocol):
    """Describes the pieces of one decoder layer that can be cut.

    A piece owns rows of the `inputs` and columns of the `output`: the layer adds up, over the
    pieces, what each computes from the hidden states times its columns.

    Attributes:
        index: number of the decoder layer.
        name: path of the module in the model, for messages and for a recipe's `ignore`.
        decoder_layer: the layer it stands in.
        inputs: projections of which pieces own rows.
        output: the projection of which pieces own columns; what enters it are their activations.
        signals: name -> where that signal of every piece can be read; empty where there is none.
    """

    index: int
    name: str
    decoder_layer: nn.Module

    @property
    def inputs(self) -> tuple[nn.Module, ...]: ...

    @property
    def output(self) -> nn.Module: ...

    @property
    def signals(self) -> Mapping[str, Signal]: ...

    @property
    def width(self) -> int:
        """Count the pieces. It is read from the modules, so it follows the surgery."""

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """List the inputs, then the output."""

    @property
    def weights(self) -> list[Tensor]:
        """List the weights of `projections` as (out, in), as they are now."""

    @property
    def output_weight(self) -> Tensor:
        """Give the weight of the output projection, (hidden, n_columns)."""

    @property
    def n_columns(self) -> int:
        """Count the columns of the output projection; a piece may own several."""

    @property
    def hidden_size(self) -> int:
        """Count what the output projection gives for each token."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def parameters(self) -> int:
        """Count all parameters of the projections, biases included."""

    @property
    def parameters_per_piece(self) -> int:
        """Count the parameters that go with one piece."""

    def path_of(self, module: nn.Module) -> str:
        """Give the path of one of `projections` in the model."""

    def rows_of(self, pieces: Tensor, module: nn.Module) -> Tensor:
        """Give the rows of one of `inputs` that belong to some pieces, (n_rows,), int64."""

    def columns_of(self, pieces: Tensor) -> Tensor:
        """Give the columns of the output that belong to some pieces, (n_columns,), int64."""

    def by_piece(self, of_columns: Tensor, of_rows: Sequence[Tensor] = ()) -> Tensor:
        """Add up figures of columns and rows by the piece that owns them.

        Args:
            of_columns: of the output projection, (n_columns,).
            of_rows: for each of `inputs`, (out,); or nothing.

        Returns:
            (width,).
        """

    def resize(self, width: int) -> None:
        """Tell the modules that so many pieces are left; their parameters were cut already."""
