"""Shows the heads of one attention layer as pieces that can be cut.

A piece is a key-value head with all query heads that share it (grouped-query attention, Ainslie et
al. 2023, arXiv 2305.13245): cut one by one, query heads would leave their group uneven.
"""

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
from funcnet_plugin.errors import AdapterError

# As they are called wherever a config can say the number of heads and their size apart.
_ATTENTION = "self_attn"
_INPUTS, _OUTPUT = ("q_proj", "k_proj", "v_proj"), "o_proj"
# What modelling code keeps besides: the number of query heads, and of key-value heads.
QUERY_COUNTS, KEY_COUNTS = ("num_heads", "num_attention_heads"), ("num_key_value_heads",)


@dataclass(frozen=True)
class AttentionBlock(ProjectedUnit):
    """Implements `Unit` with the groups of heads of one attention layer.

    Attributes:
        query, key, value, out: the projections; `out` adds up what the heads give.
        head_size: rows of a head in each of the inputs, and columns of one in `out`.
    """

    index: int
    name: str  # module path of the attention in the model
    decoder_layer: nn.Module
    attention: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    head_size: int

    @property
    def width(self) -> int:
        return out_size(self.key) // self.head_size

    @property
    def query_heads(self) -> int:
        """Count the query heads of one group."""
        return out_size(self.query) // out_size(self.key)

    @property
    def root(self) -> nn.Module:
        return self.attention

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        return (self.query, self.key, self.value)

    @property
    def output(self) -> nn.Module:
        return self.out

    @property
    def signals(self) -> dict[str, Signal]:
        """Give none: no module has one number for each group."""
        return {}

    @property
    def parameters_per_piece(self) -> int:
        """Count a group's rows of the inputs (and their biases), and its columns of the output."""
        rows = sum(
            self._rows(module) * (in_size(module) + (module.bias is not None))
            for module in self.inputs
        )
        return rows + self._columns * self.hidden_size

    def rows_of(self, pieces: Tensor, module: nn.Module) -> Tensor:
        return _spread(pieces, self._rows(module))

    def columns_of(self, pieces: Tensor) -> Tensor:
        return _spread(pieces, self._columns)

    def by_piece(self, of_columns: Tensor, of_rows: Sequence[Tensor] = ()) -> Tensor:
        return sum(
            figures.unflatten(0, (self.width, -1)).sum(1) for figures in (of_columns, *of_rows)
        )

    def resize(self, width: int) -> None:
        queries = width * self.query_heads
        set_out_size(self.query, queries * self.head_size)
        for module in (self.key, self.value):
            set_out_size(module, width * self.head_size)
        set_in_size(self.out, queries * self.head_size)
        for names, count in ((QUERY_COUNTS, queries), (KEY_COUNTS, width)):
            for name in names:
                if isinstance(getattr(self.attention, name, None), int):
                    setattr(self.attention, name, count)

    @property
    def _columns(self) -> int:
        return self.query_heads * self.head_size

    def _rows(self, module: nn.Module) -> int:
        return self._columns if module is self.query else self.head_size


def bind_attention(model: nn.Module, layers: str) -> tuple[AttentionBlock, ...]:
    """Find the heads of all layers, in order. Weights are not read.

    Args:
        layers: path of the list of decoder layers.

    Raises:
        AdapterError: the projections are fused or have other names, or their sizes are not those of
            whole groups of heads.
    """
    return tuple(
        _bind(f"{layers}.{i}.{_ATTENTION}", i, layer, type(model).__name__)
        for i, layer in enumerate(model.get_submodule(layers))
    )


def _bind(name: str, index: int, layer: nn.Module, architecture: str) -> AttentionBlock:
    attention = getattr(layer, _ATTENTION, None)
    found = [getattr(attention, path, None) for path in (*_INPUTS, _OUTPUT)]
    if not all(isinstance(module, nn.Linear) for module in found):
        raise AdapterError(
            f"heads of {architecture} cannot be cut: {name} does not have the four projections "
            f"{', '.join((*_INPUTS, _OUTPUT))} (fused ones are not supported); leave heads_ratio "
            "out."
        )
    query, key, value, out = found
    size = getattr(attention, "head_dim", None)
    whole = isinstance(size, int) and not any(out_size(m) % size for m in (query, key))
    if not whole or out_size(query) % out_size(key):
        raise AdapterError(
            f"heads of {architecture} cannot be cut: the {out_size(query)} rows of the queries and "
            f"{out_size(key)} of the keys in {name} are not whole groups of heads; leave "
            "heads_ratio out."
        )
    if out_size(value) != out_size(key) or in_size(out) != out_size(query):
        raise AdapterError(
            f"heads of {architecture} cannot be cut: in {name} a head has other sizes in its keys "
            "and values, or in its queries and outputs; leave heads_ratio out."
        )
    return AttentionBlock(index, name, layer, attention, query, key, value, out, size)


def _spread(pieces: Tensor, each: int) -> Tensor:
    """List the rows or columns of pieces that own `each` of them in a row."""
    return (pieces[:, None] * each + torch.arange(each, device=pieces.device)).flatten()
