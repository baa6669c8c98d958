"""Takes a text through the layers of a model, and hands over what is inside of each, by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from compressed_tensors.offload import disable_offloading
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.passes import layer_by_layer
from funcnet_plugin.measure.recorder import Recorder
from funcnet_plugin.measure.sample import Sample
from funcnet_plugin.measure.states import HiddenStates
from funcnet_plugin.measure.text import Text
from funcnet_plugin.survey.channels import Channels, ChannelSample

Watched = Unit | Channels
Seen = Sample | ChannelSample


@torch.no_grad()
def sweep(
    model: nn.Module,
    units: Sequence[Unit],
    text: Text,
    title: str,
    wanted: Mapping[int, Watched],
    add: Callable[[Watched, Seen], None],
    done: Callable[[Watched], None] = lambda unit: None,
) -> HiddenStates:
    """Run a whole text through one layer after the other; a GPU holds one of them at a time.

    Args:
        model: in evaluation mode.
        units: of all layers, in order.
        title: of the bar.
        wanted: layer -> what is looked at in it; other layers are only run.
        add: is given the samples of each, in the order of the text.
        done: is told when a layer has seen all of them.

    Returns:
        the states behind the last layer.

    Raises:
        NumbersError: activations or hidden states are not finite.
    """
    with layer_by_layer(model):
        states = HiddenStates(model, units, text, title)
        for unit in bar(units, title, "layer"):
            watched = wanted.get(unit.index)
            seen: list[Seen] = []
            with disable_offloading(), hooked([] if watched is None else _hooks(watched, seen)):
                for batch, output in states.through(unit):
                    for sample in seen:
                        sample.check_finite(watched)
                        add(watched, sample)
                    what = f"layer {unit.index}: the hidden states behind the layer"
                    states.keep(batch, output, what)
            if watched is not None:
                done(watched)
    return states


def mean_state(states: HiddenStates) -> Tensor:
    """Average what stands behind the last layer over all tokens, (hidden,), float32, on the CPU."""
    total, n_tokens = 0.0, 0
    for batch in states.batches:
        tokens = batch.hidden[batch.real.to(batch.hidden.device)].float()
        total, n_tokens = total + tokens.sum(0), n_tokens + len(tokens)
    return (total / n_tokens).cpu()


def _hooks(unit: Watched, seen: list[Seen]) -> list[RemovableHandle]:
    """Fill `seen` with the samples of the batch that a layer was last called with."""
    handles: list[RemovableHandle] = []

    def register(
        module: nn.Module, hook: Callable[..., Any], kind: str, **how: Any
    ) -> RemovableHandle:
        handle = getattr(module, f"register_{kind}_hook")(hook, **how)
        handles.append(handle)
        return handle

    # a batch that ran out of memory half way is run again in halves
    register(unit.decoder_layer, lambda module, args: seen.clear(), "forward_pre")
    if isinstance(unit, Channels):
        return [*handles, *unit.record(seen.append)]
    Recorder(unit, register, seen.append)
    return handles
