"""The loss's gradients over the calibration data, for scorers that ask for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.pruning.batches import model_inputs
from funcnet_plugin.pruning.processes import Processes


def loss_gradients(
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: list[MLPBlock],
    processes: Processes | None = None,
) -> dict[int, tuple[Tensor, ...]]:
    """One forward and backward pass over all samples, through the whole model.

    Args:
        model: dense, in memory; its parameters come back without gradients and as they were.
        calibration: batches as the run reads them. Padding is no target.
        blocks: whose projections are asked about.
        processes: others that read other samples.

    Returns:
        layer -> gradients of the weights of `block.projections`, (out, in), the weights' dtype:
        of the next-token loss, mean over batches.
    """
    logger.info("taking the loss's gradients over the calibration data")
    wanted = {id(module.weight) for block in blocks for module in block.projections}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    n_batches = 0
    try:
        with torch.enable_grad():
            for ids, mask, labels in model_inputs(model, calibration):
                model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
                n_batches += 1
        if processes is not None:
            n_batches = sum(processes.gather(n_batches))
        found = {}
        for block in blocks:
            gradients = []
            for module in block.projections:
                total = module.weight.grad
                total = total if processes is None else processes.sum(total)
                gradients.append(oriented(module, total / n_batches))
            found[block.index] = tuple(gradients)
        return found
    finally:
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad_(required)
