"""Cuts all layers and repairs each behind the pruned ones before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from compressed_tensors.offload import disable_offloading
from loguru import logger
from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.streams import Streams
from funcnet_plugin.measure.text import Text
from funcnet_plugin.repair.pruned_layer import PrunedLayer, total
from funcnet_plugin.repair.repair import Repair


@torch.no_grad()
def cut_behind(
    model: nn.Module,
    units: Sequence[Unit],
    cuts: Mapping[int, Callable[[], None]],
    repair: Repair,
    texts: Sequence[Text],
    *,
    gain: float,
    seed: int,
    processes: Processes | None,
) -> dict[int, dict[str, float]]:
    """Cut layer after layer, and refit each with what the pruned layers before it made of the text.

    Args:
        model: dense yet.
        units: of all layers, in order.
        cuts: layer -> what cuts it; layers that are not named are left as they are.
        repair: one that works behind pruned layers.
        texts: that it reads; their shares sum to 1.
        gain: see `residual_gain`.
        seed: see `PrunedLayer`.
        processes: others that read other text.

    Returns:
        layer -> what was found while it was repaired, by name.
    """
    found: dict[int, dict[str, float]] = {}
    logger.info("repairing the residual stream behind every pruned layer")
    read = [Streams(model, units, text) for text in texts]
    streams = {
        stream: text.share / total(stream.n_tokens, processes)
        for stream, text in zip(read, texts, strict=True)
    }
    for unit in bar(units, "repairing layers", "layer"):
        with disable_offloading():  # its weights are sent once, for all batches
            for stream in streams:
                stream.pass_dense(unit)
            if unit.index in cuts:
                cuts[unit.index]()
                layer = PrunedLayer(unit, streams, gain, seed, processes)
                if not found:  # the first layer that is cut stands for all
                    samples = sum(total(stream.n_windows, processes) for stream in streams)
                    if few := repair.too_little(layer.n_tokens, unit.width, samples):
                        logger.warning(few)
                found[unit.index] = repair.refit(layer)
            for stream in streams:
                stream.pass_pruned(unit)
    return found
