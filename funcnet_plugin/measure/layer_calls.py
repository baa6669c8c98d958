"""Keeps how a model calls its decoder layers, so that one layer can be run by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.hooks import hooked


@dataclass
class LayerCall:
    """Holds what a decoder layer is called with for one batch, hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # whether hidden states are a keyword

    def run(self, unit: Unit, hidden: Tensor) -> Tensor:
        """Give the layer's output for hidden states of the batch, (batch, length, hidden)."""
        hidden = hidden.to(unit.device)
        if self.by_name:
            output = unit.decoder_layer(*self.args, hidden_states=hidden, **self.kwargs)
        else:
            output = unit.decoder_layer(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def share(self, other: LayerCall) -> None:
        """Keep tensors that are equal once: masks and rotary embeddings are in most batches."""
        self.args = tuple(map(_same, self.args, other.args))
        for key, value in self.kwargs.items():
            self.kwargs[key] = _same(value, other.kwargs.get(key))


class _AllSeenError(Exception):
    """Ends a pass: the last layer was called, and what the model does with it is not needed."""


def layer_calls(
    model: nn.Module, units: Sequence[Unit], ids: Tensor, mask: Tensor
) -> tuple[list[LayerCall], Tensor]:
    """Find out how the model calls each of its layers, and what enters the first.

    Args:
        units: of all layers, in order.
        ids, mask: (batch, length), int64.

    Returns:
        one call per layer; (batch, length, hidden), on the CPU.
    """
    calls: list[LayerCall] = []
    first: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_name = not args
        hidden = kwargs["hidden_states"] if by_name else args[0]
        if not calls:
            first.append(hidden.detach().cpu())
        others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        calls.append(LayerCall(args[1:], others, by_name))
        if len(calls) == len(units):
            raise _AllSeenError

    hooks = (unit.decoder_layer.register_forward_pre_hook(see, with_kwargs=True) for unit in units)
    with hooked(hooks), suppress(_AllSeenError):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return calls, first[0]


def _same(value: Any, other: Any) -> Any:
    """Take `other` where it is equal to `value`."""
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return tuple(map(_same, value, other))
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = value.shape == other.shape and value.device == other.device
        return other if alike and torch.equal(value, other) else value
    return value
