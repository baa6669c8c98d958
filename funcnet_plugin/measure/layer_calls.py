"""Keeps how a model calls its decoder layers, so that one layer can be run by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.offloading import device_of


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

    def attention_mask(self, unit: Unit) -> Any:
        """Give the mask that the layer is called with, whatever it is; None where there is none."""
        names = list(inspect.signature(unit.decoder_layer.forward).parameters)
        given = dict(zip(names[1:], self.args, strict=False)) | self.kwargs
        return given.get("attention_mask")

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

    The layers themselves are not run, but for the first: what they are called with besides hidden
    states does not depend on these.

    Args:
        units: of all layers, in order.
        ids, mask: (batch, length), int64, on any device.

    Returns:
        one call per layer; (batch, length, hidden), where the model has it.
    """
    calls: list[LayerCall] = []
    first: list[Tensor] = []
    rest: list[Any] = []  # what the first layer gives besides hidden states, in a tuple

    def see(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        by_name = not args
        hidden = kwargs["hidden_states"] if by_name else args[0]
        others = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        calls.append(LayerCall(args[1:], others, by_name))
        if not first:
            first.append(hidden.detach())
        if len(calls) == len(units):
            raise _AllSeenError
        if not rest:
            output = forward(*args, **kwargs)  # how outputs look; the others only pass on
            rest.append(output[1:] if isinstance(output, tuple) else None)
            return output
        return hidden if rest[0] is None else (hidden, *rest[0])

    device = device_of(model)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    with _through(see, units), suppress(_AllSeenError):
        model(**inputs, use_cache=False)
    return calls, first[0]


def entering_head(model: nn.Module, units: Sequence[Unit], hidden: Tensor) -> Tensor:
    """Give what enters the output embeddings, for hidden states behind the last layer.

    Args:
        units: of all layers, in order.
        hidden: (n, hidden), any floating dtype.

    Returns:
        (n, hidden), where the model has it.
    """
    entered: list[Tensor] = []
    rest: list[Any] = []  # as in `layer_calls`
    calls = 0

    def see(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if not rest:
            output = forward(*args, **kwargs)
            rest.append(output[1:] if isinstance(output, tuple) else None)
        before = args[0] if args else kwargs["hidden_states"]
        after = hidden.to(before)[:, None] if calls == len(units) else before
        return after if rest[0] is None else (after, *rest[0])

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered.append(args[0][:, 0].detach())
        raise _AllSeenError

    ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=device_of(model))
    head = model.get_output_embeddings()
    with (
        _through(see, units),
        hooked([head.register_forward_pre_hook(enter)]),
        suppress(_AllSeenError),
    ):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return entered[0]


@contextmanager
def _through(see: Callable[..., Any], units: Sequence[Unit]) -> Iterator[None]:
    """Have `see` called in place of the layers' forward, with that and its arguments."""
    layers = [unit.decoder_layer for unit in units]
    before = [vars(layer).get("forward") for layer in layers]  # offloading may have put one there
    for layer in layers:
        layer.forward = partial(see, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _same(value: Any, other: Any) -> Any:
    """Take `other` where it is equal to `value`."""
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return tuple(map(_same, value, other))
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = value.shape == other.shape and value.device == other.device
        return other if alike and torch.equal(value, other) else value
    return value
