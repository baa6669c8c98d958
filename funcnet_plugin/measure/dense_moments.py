"""Measures moments of a whole dense model, one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compressed_tensors.offload import disable_offloading
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.passes import layer_by_layer
from funcnet_plugin.measure.states import HiddenStates
from funcnet_plugin.measure.text import Text

_STREAM = "dense"


@torch.no_grad()
def moments_of(
    model: nn.Module, units: Sequence[Unit], text: Text, measured: Sequence[Unit]
) -> dict[int, Moments]:
    """Measure moments in one pass through the layers; a GPU holds one of them at a time.

    Args:
        model: dense.
        units: of all layers, in order.
        text: without padding.
        measured: those that are asked about, at least one.

    Returns:
        layer -> moments of its activations over all tokens, on the CPU.

    Raises:
        NumbersError: activations or hidden states are not finite.
    """
    found: dict[int, Moments] = {}
    asked = {unit.index for unit in measured}
    with layer_by_layer(model):
        states = HiddenStates(model, units, text, (_STREAM,), "moments of its own text")
        for unit in bar(units[: max(asked) + 1], "moments of its own text", "layer"):
            with disable_offloading():  # its weights are sent once
                moments = _through(states, unit)
            if unit.index in asked:
                found[unit.index] = moments.to("cpu")
    return found


def _through(states: HiddenStates, unit: Unit) -> Moments:
    """Take the text through one layer, and look at what enters the output projection."""
    moments, entered = Moments(unit.n_columns), []

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered[:] = [args[0].flatten(0, -2)]

    with hooked([unit.output.register_forward_pre_hook(enter)]):
        for batch, output in states.through(unit, _STREAM):
            h = entered.pop()
            check_finite(h, f"layer {unit.index}: inputs of the down projection of {unit.name}")
            moments.add(h)
            what = f"layer {unit.index}: the hidden states behind the layer"
            states.keep(batch, _STREAM, output, what)
    return moments
