"""The loss's gradients over the calibration data, for scorers that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented, out_size
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.scorers import LossGradients, Scorer
from funcnet_plugin.pruning.whole_model import model_inputs, on_gpu


def gradients_for(
    scorers: Sequence[Scorer],
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None = None,
) -> dict[int, LossGradients]:
    """What these scorers need of `loss_gradients`; empty if that is nothing."""
    of_weights = any(scorer.needs_gradients for scorer in scorers)
    of_outputs = any(scorer.needs_output_gradients for scorer in scorers)
    if not blocks or not (of_weights or of_outputs):
        return {}
    return loss_gradients(
        model, calibration, blocks, processes, of_weights=of_weights, of_outputs=of_outputs
    )


def loss_gradients(
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None = None,
    *,
    of_weights: bool = True,
    of_outputs: bool = True,
) -> dict[int, LossGradients]:
    """One forward and backward pass over all samples, through the whole model.

    Args:
        model: dense, in memory, on one device; its parameters come back without gradients and as
            they were.
        calibration: batches as the run reads them. Padding is no target.
        blocks: which MLPs are asked about.
        processes: others that read other samples.
        of_weights, of_outputs: which parts of `LossGradients` are wanted.

    Returns:
        layer -> gradients, on the device that the weights had before.
    """
    logger.info("taking the loss's gradients over the calibration data")
    home = next(model.parameters()).device
    with on_gpu(model):
        return _collect(model, calibration, blocks, processes, of_weights, of_outputs, home)


def _collect(
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None,
    of_weights: bool,
    of_outputs: bool,
    home: torch.device,
) -> dict[int, LossGradients]:
    wanted = {id(m.weight) for block in blocks for m in block.projections} if of_weights else set()
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    outputs = {b.index: _OutputGradients(b) for b in blocks} if of_outputs else {}
    n_batches = n_tokens = 0
    try:
        with torch.enable_grad():
            for ids, mask, labels in model_inputs(model, calibration):
                n_targets = int((labels[:, 1:] != -100).sum())
                for output in outputs.values():
                    output.expect(mask.bool(), n_targets)
                model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
                n_batches += 1
                n_tokens += int(mask.sum())
        if processes is not None:
            n_batches, n_tokens = (sum(processes.gather(n)) for n in (n_batches, n_tokens))
        total: Callable[[Tensor], Tensor] = (lambda x: x) if processes is None else processes.sum
        return {
            block.index: LossGradients(
                weights=tuple(
                    oriented(module, total(module.weight.grad) / n_batches).to(home)
                    for module in block.projections
                )
                if of_weights
                else None,
                output_second=(total(outputs[block.index].total) / n_tokens).to(home)
                if of_outputs
                else None,
            )
            for block in blocks
        }
    finally:
        for output in outputs.values():
            output.remove()
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad_(required)


class _OutputGradients:
    """Sum of g g' over tokens, g the gradient of the summed loss by the MLP's output."""

    def __init__(self, block: MLPBlock) -> None:
        size = out_size(block.down)
        device = block.down.weight.device
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._hook = block.down.register_forward_hook(self._forward)

    def expect(self, real: Tensor, n_targets: int) -> None:
        """Of the next batch: which tokens are text, and over how many the loss is a mean."""
        self._real, self._n_targets = real, n_targets

    def _forward(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # Without trainable weights nothing below the first MLP would ask for gradients.
        output = output if output.requires_grad else output.detach().requires_grad_(True)
        output.register_hook(self._backward)
        return output

    def _backward(self, gradient: Tensor) -> None:
        real = self._real.flatten().to(gradient.device)
        g = gradient.detach().flatten(0, -2)[real].float() * self._n_targets
        self.total += (g.T @ g).double()

    def remove(self) -> None:
        self._hook.remove()
