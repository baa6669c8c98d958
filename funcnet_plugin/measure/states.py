"""Takes the hidden states of a text through a model, layer by layer.

So one layer after the other is all that a device must hold of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from compressed_tensors.offload import disable_offloading
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.free_memory import free_bytes
from funcnet_plugin.measure.halving import halves, say_halved
from funcnet_plugin.measure.joining import joined
from funcnet_plugin.measure.layer_calls import LayerCall, layer_calls
from funcnet_plugin.measure.offloading import device_of
from funcnet_plugin.measure.passes import model_inputs
from funcnet_plugin.measure.room import room_for
from funcnet_plugin.measure.text import Text

# Of the free memory of a GPU: more must not be filled by states that wait, of one text.
_SHARE = 0.2


@dataclass
class StateBatch:
    """Holds some samples between two layers.

    Attributes:
        ids, mask: (batch, length), int64.
        calls: how each layer is called with them.
        hidden: (batch, length, hidden), what enters the next layer.
    """

    ids: Tensor
    mask: Tensor
    calls: list[LayerCall]
    hidden: Tensor

    @property
    def real(self) -> Tensor:
        """Tell which tokens are text, (batch, length), bool."""
        return self.mask.bool()


class HiddenStates:
    """Keeps the hidden states of a text between layers.

    Args:
        model: whole; run once with the layers left out, to see how it calls them.
        units: of all layers, in order.
        text: that is read. Equal samples are read together in any case.
        what: is done with them, for messages.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], text: Text, what: str) -> None:
        self._model, self._units, self._what = model, units, what
        self._place = _place(model, units, text)
        self.batches: list[StateBatch] = []
        device = device_of(model)
        text = text if text.may_join else replace(text, may_join=True)
        read = joined(text, room_for(model, units, device))
        with disable_offloading():  # what all batches need is sent once
            for ids, mask, _ in model_inputs(model, read, "how layers are called"):
                self._begin(ids, mask)

    def through(self, unit: Unit) -> Iterator[tuple[StateBatch, Tensor]]:
        """Run one layer on all batches; each stays before it until `keep`.

        Yields:
            a batch and what the layer gives for it, (batch, length, hidden), on the layer's device.
        """
        position = 0
        while position < len(self.batches):
            batch = self.batches[position]
            output = self._run(batch, unit)
            if output is None:
                self.batches[position : position + 1] = self._halved(batch)
                continue
            yield batch, output
            del output
            position += 1

    def keep(self, batch: StateBatch, output: Tensor, what: str) -> None:
        """Let what a layer gave wait for the next.

        Args:
            what: it is, for a message.

        Raises:
            NumbersError: it is not finite, padding aside.
        """
        check_finite(output[batch.real.to(output.device)], what)
        batch.hidden = _put(output, self._place)

    def _run(self, batch: StateBatch, unit: Unit) -> Tensor | None:
        try:
            return batch.calls[unit.index].run(unit, batch.hidden)
        except torch.OutOfMemoryError:  # what it held is free when this is left
            return None

    def _begin(self, ids: Tensor, mask: Tensor) -> None:
        calls, first = layer_calls(self._model, self._units, ids, mask)
        if self.batches:
            for call, other in zip(calls, self.batches[-1].calls, strict=True):
                call.share(other)
        self.batches.append(StateBatch(ids, mask, calls, _put(first, self._place)))

    def _halved(self, batch: StateBatch) -> list[StateBatch]:
        say_halved(self._what, *batch.ids.shape)
        rows = {"input_ids": batch.ids, "attention_mask": batch.mask, "hidden": batch.hidden}
        found = []
        for half in halves(rows, self._what):
            ids, mask = half["input_ids"], half["attention_mask"]
            calls, _ = layer_calls(self._model, self._units, ids, mask)
            found.append(StateBatch(ids, mask, calls, half["hidden"]))
        return found


def _place(model: nn.Module, units: Sequence[Unit], text: Text) -> torch.device:
    """Say where states wait: on the device of the layers if they leave most of its memory free."""
    device = device_of(model)
    if device.type == "cpu":
        return device
    tokens = sum(batch["input_ids"].numel() for batch in text.batches)
    needed = tokens * units[0].hidden_size * units[0].dtype.itemsize
    return device if wait_on_gpu(needed, free_bytes(device)) else torch.device("cpu")


def wait_on_gpu(states: int, free: float) -> bool:
    """Tell whether the states of one text stay on a GPU.

    Args:
        states: bytes of them.
        free: bytes of the GPU.
    """
    return states < _SHARE * free


def _put(hidden: Tensor, place: torch.device) -> Tensor:
    if hidden.device.type == "cpu" or place.type != "cpu":
        return hidden.to(place)
    waiting = torch.empty_like(hidden, device="cpu", pin_memory=True)  # comes and goes fast
    return waiting.copy_(hidden)
