"""Runs the dense and the pruned model side by side, layer by layer on the same text.

Only one copy of the weights is there: a layer is run dense, cut, and run again on what the pruned
layers before it left. Between layers the hidden states of both wait on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.layer_calls import LayerCall, layer_calls
from funcnet_plugin.measure.passes import model_inputs
from funcnet_plugin.measure.text import Text

_TOKENS = 4096  # of samples that are run together


@dataclass
class _Batch:
    real: Tensor  # (batch, length), bool: which tokens are text
    calls: list[LayerCall]  # per layer
    dense: Tensor  # (batch, length, hidden), on the CPU, what enters the next layer
    pruned: Tensor

    def check(self, hidden: Tensor, what: str) -> None:
        """Refuse hidden states that are not finite, padding aside."""
        check_finite(hidden[self.real.to(hidden.device)], f"{what} behind it")


@dataclass(frozen=True)
class Difference:
    """Holds what a pruned layer was given and what it missed, for one batch, padding removed.

    Attributes:
        x: (n_tokens, hidden), what entered its unit.
        h: (n_tokens, width), what entered its output projection.
        error: (n_tokens, hidden), float32: the dense model's hidden states after the layer, less
            the pruned model's.
        sample: (n_tokens,), int64, which calibration sample the token belongs to.
    """

    x: Tensor
    h: Tensor
    error: Tensor
    sample: Tensor


class Streams:
    """Takes the hidden states of the dense and of the pruned model through the layers.

    Args:
        model: still dense; run once as a whole, to see how it calls its layers.
        units: of all layers, in order.
        text: that both read.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], text: Text) -> None:
        self._per_sample = text.per_sample
        self._batches: list[_Batch] = []
        for ids, mask in _together(model, text):
            calls, hidden = layer_calls(model, units, ids, mask)
            if self._batches:
                for call, other in zip(calls, self._batches[-1].calls, strict=True):
                    call.share(other)
            self._batches.append(_Batch(mask.bool(), calls, hidden, hidden))

    @property
    def n_tokens(self) -> int:
        """Count the tokens, padding left out."""
        return sum(int(batch.real.sum()) for batch in self._batches)

    @property
    def n_windows(self) -> int:
        """Count the windows."""
        return sum(len(batch.real) for batch in self._batches)

    def pass_dense(self, unit: Unit) -> None:
        """Take the dense stream through a layer that is not cut yet."""
        for batch in self._batches:
            batch.dense = batch.calls[unit.index].run(unit, batch.dense).cpu()
            batch.check(batch.dense, f"layer {unit.index}: the dense model's hidden states")

    def differences(self, unit: Unit) -> Iterator[Difference]:
        """Give what a layer that was cut still misses; its dense stream must be behind it."""
        first = 0
        for batch in self._batches:
            entered: dict[str, Tensor] = {}
            hooks = (
                module.register_forward_pre_hook(
                    lambda m, args, name=name, to=entered: to.update({name: args[0]})
                )
                for name, module in (("unit", unit.inputs[0]), ("output", unit.output))
            )
            with hooked(hooks):
                output = batch.calls[unit.index].run(unit, batch.pruned)
            real = batch.real.flatten().to(output.device)
            # OPT flattens the batch before its MLP
            x, h = (entered[name].flatten(0, -2)[real] for name in ("unit", "output"))
            error = batch.dense.to(output.device).float() - output.float()
            sample = (first + batch.real.nonzero()[:, 0]) // self._per_sample
            yield Difference(x, h, error.flatten(0, -2)[real], sample)
            first += len(batch.real)

    def pass_pruned(self, unit: Unit) -> None:
        """Take the pruned stream through a layer as it is now."""
        for batch in self._batches:
            batch.pruned = batch.calls[unit.index].run(unit, batch.pruned).cpu()
            batch.check(batch.pruned, f"layer {unit.index}: the pruned model's hidden states")


def together(length: int) -> int:
    """Count the tokens of the largest batch of windows of one length."""
    return max(length, _TOKENS // length * length)


def _together(model: nn.Module, text: Text) -> Iterator[tuple[Tensor, Tensor]]:
    """Join neighbours of one length to larger batches: oneshot's have one sample."""
    waiting: list[tuple[Tensor, Tensor]] = []

    def joined() -> tuple[Tensor, Tensor]:
        ids, mask = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        waiting.clear()
        return ids, mask

    for ids, mask, _ in model_inputs(model, text.batches, "how the layers are called"):
        tokens = sum(other.numel() for other, _ in waiting) + ids.numel()
        if waiting and (waiting[0][0].shape[1] != ids.shape[1] or tokens > _TOKENS):
            yield joined()
        waiting.append((ids, mask))
    if waiting:
        yield joined()
