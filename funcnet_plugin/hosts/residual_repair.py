"""The cut of all layers with repair of the residual stream, layer by layer behind pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import out_size
from funcnet_plugin.hosts.own_calibration import PER_SAMPLE, own_batches
from funcnet_plugin.pruning.residual import ResidualFit
from funcnet_plugin.pruning.streams import Streams, residual_gain
from funcnet_plugin.pruning.surgery import change_down

Batches = Iterable[dict[str, Any]]


@dataclass
class ResidualRepair:
    """What a run repairs with, once all layers are measured.

    Attributes:
        texts: calibration batches, with their share of the whole.
        gain: see `residual_gain`.
        ridge: see `ResidualFit`.
    """

    texts: Sequence[tuple[Batches, float]]
    gain: float
    ridge: float

    @torch.no_grad()
    def prune(
        self,
        model: nn.Module,
        blocks: Sequence[MLPBlock],
        cuts: Mapping[int, Callable[[], None]],
    ) -> None:
        """Cut layer after layer, each made up for by its own down projection.

        Args:
            model: dense yet.
            blocks: of all layers, in order.
            cuts: layer -> what cuts it; layers that are not named are left as they are.
        """
        logger.info("repairing the residual stream behind every pruned layer")
        with torch.random.fork_rng(devices=[]):
            streams = [(Streams(model, blocks, batches), share) for batches, share in self.texts]
        weights = [share / stream.n_tokens for stream, share in streams]
        for block in blocks:
            for stream, _ in streams:
                stream.pass_dense(block)
            if block.index in cuts:
                cuts[block.index]()
                fit = ResidualFit(
                    block.width, out_size(block.down), self.gain, block.down.weight.device
                )
                for (stream, _), weight in zip(streams, weights, strict=True):
                    for missing in stream.differences(block):
                        fit.add(missing.h, missing.error, weight)
                change_down(block, fit.change(self.ridge))
            for stream, _ in streams:
                stream.pass_pruned(block)


def plan_repair(
    model: nn.Module,
    blocks: Sequence[MLPBlock],
    calibration: Batches,
    own: Tensor | None,
    *,
    own_text: float,
    ridge: float,
) -> ResidualRepair | None:
    """The repair of a run; None, with a warning, for a model whose stream cannot be repaired.

    Args:
        model: dense, in memory.
        blocks: of all layers, in order.
        calibration: batches as the run reads them.
        own: (n_windows, window), what the model wrote, if anything.
        own_text, ridge: see `WidthPruningModifier`.
    """
    with torch.random.fork_rng(devices=[]):
        gain = residual_gain(model, blocks, next(iter(calibration)))
    if gain is None:
        logger.warning(
            f"{type(model).__name__} does not add its MLPs' output to the residual stream as it "
            "is, so compensation: residual_least_squares repairs each MLP's own output only, like "
            "least_squares."
        )
        return None
    texts = [(calibration, 1.0 - own_text if own is not None else 1.0)]
    if own is not None:
        # one window per sample serves the repair as well as all of them, only choosing needs more
        texts.append((own_batches(own[::PER_SAMPLE]), own_text))
    return ResidualRepair(texts, gain, ridge)
