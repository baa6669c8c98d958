"""Measures moments of a whole dense model, one layer after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def moments_of(
    model: nn.Module,
    units: Sequence[Unit],
    text: Text,
    measured: Sequence[Unit],
    title: str = "moments of its own text",
) -> dict[int, Moments]:
    """Measure moments of several layers, which all wait on the CPU; see `moments_by_layer`.

    Returns:
        layer -> moments.
    """
    return {
        unit.index: found for unit, found in moments_by_layer(model, units, text, measured, title)
    }


@torch.no_grad()
def moments_by_layer(
    model: nn.Module, units: Sequence[Unit], text: Text, measured: Sequence[Unit], title: str
) -> Iterator[tuple[Unit, Moments]]:
    """Measure moments in one pass through the layers; a GPU holds one of them at a time.

    Args:
        model: dense.
        units: of all layers, in order.
        text: that is read; padding is left out.
        measured: those that are asked about, at least one, of any kind.
        title: of the bar.

    Yields:
        a unit, and the moments of what enters its output projection over all tokens, on the CPU.

    Raises:
        NumbersError: activations or hidden states are not finite.
    """
    asked = {unit.index: unit for unit in measured}
    with layer_by_layer(model):
        states = HiddenStates(model, units, text, title)
        for unit in bar(units[: max(asked) + 1], title, "layer"):
            with disable_offloading():  # its weights are sent once
                moments = _through(states, asked.get(unit.index, unit))
            if unit.index in asked:
                yield asked[unit.index], moments.to("cpu")


def _through(states: HiddenStates, unit: Unit) -> Moments:
    """Take the text through one layer, and look at what enters the output projection."""
    moments, entered = Moments(unit.n_columns), []

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered[:] = [args[0].flatten(0, -2)]

    with hooked([unit.output.register_forward_pre_hook(enter)]):
        for batch, output in states.through(unit):
            h = entered.pop()
            if not batch.mask.all():
                h = h[batch.real.flatten().to(h.device)]
            check_finite(h, f"layer {unit.index}: inputs of {unit.path_of(unit.output)}")
            moments.add(h)
            what = f"layer {unit.index}: the hidden states behind the layer"
            states.keep(batch, output, what)
    return moments
