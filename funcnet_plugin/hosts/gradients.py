"""The loss's gradients over the calibration data, for scorers that ask for them.

The Fisher information is an expectation over what the model predicts, and estimated with labels
drawn from its predictions. With the labels of the text it is another matrix, largest where the
model is most mistaken (Kunstner et al. 2019, arXiv 1905.12558).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented, out_size
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.pruning.processes import Processes
from funcnet_plugin.pruning.scorers import LossGradients, Scorer
from funcnet_plugin.pruning.whole_model import model_inputs, on_gpu


def gradients_for(
    scorers: Sequence[Scorer],
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None = None,
    *,
    drawn_by: int | None = None,
) -> dict[int, LossGradients]:
    """What these scorers need of `loss_gradients`; empty if that is nothing.

    Args:
        drawn_by: see there, of the gradients of outputs; those of weights are of the text's labels.
    """
    of_weights = any(scorer.needs_gradients for scorer in scorers)
    of_outputs = any(scorer.needs_output_gradients for scorer in scorers)
    if not blocks or not (of_weights or of_outputs):
        return {}
    if drawn_by is None or not of_outputs:
        return loss_gradients(
            model, calibration, blocks, processes, of_weights=of_weights, of_outputs=of_outputs
        )
    found = loss_gradients(
        model, calibration, blocks, processes, of_weights=False, drawn_by=drawn_by
    )
    if of_weights:
        text = loss_gradients(model, calibration, blocks, processes, of_outputs=False)
        found = {i: replace(text[i], output_second=found[i].output_second) for i in found}
    return found


def loss_gradients(
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None = None,
    *,
    of_weights: bool = True,
    of_outputs: bool = True,
    drawn_by: int | None = None,
) -> dict[int, LossGradients]:
    """One forward and backward pass over all samples, through the whole model.

    Args:
        model: dense, in memory, on one device; its parameters come back without gradients and as
            they were.
        calibration: batches as the run reads them. Padding is no target.
        blocks: which MLPs are asked about.
        processes: others that read other samples.
        of_weights, of_outputs: which parts of `LossGradients` are wanted.
        drawn_by: a seed: the model draws the labels, one for every token. What it draws for a
            sample depends on that sample alone, not on the batch, order or process it comes in.
            None: the text's own.

    Returns:
        layer -> gradients, on the device that the weights had before.

    Raises:
        CalibrationError: gradients of weights are asked for, and the weights are offloaded.
    """
    logger.info("taking the loss's gradients over the calibration data")
    home = next(model.parameters()).device
    needed = 0
    if of_outputs:
        needed += sum(8 * out_size(block.down) ** 2 for block in blocks)
    if of_weights:
        _check_weights_stay(blocks)
        weights = [module.weight for block in blocks for module in block.projections]
        needed += sum(weight.numel() * weight.element_size() for weight in weights)
    with on_gpu(model, besides=needed):
        return _collect(
            model, calibration, blocks, processes, of_weights, of_outputs, drawn_by, home
        )


def _check_weights_stay(blocks: Sequence[MLPBlock]) -> None:
    """Gradients gather in the tensor that the pass used, and offloading makes a new one each time.

    Raises:
        CalibrationError: it does.
    """
    if any(block.down.weight is not block.down.weight for block in blocks):
        raise CalibrationError(
            "taylor adds up gradients of weights, and this model's weights are offloaded; load it "
            "into memory as a whole, or take a scorer without them, surgeon for instance."
        )


def _collect(
    model: nn.Module,
    calibration: Iterable[dict[str, Any]],
    blocks: Sequence[MLPBlock],
    processes: Processes | None,
    of_weights: bool,
    of_outputs: bool,
    drawn_by: int | None,
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
            for ids, mask, labels in model_inputs(model, calibration, "gradients"):
                n_targets = int((labels[:, 1:] != -100).sum())
                for output in outputs.values():
                    output.expect(mask.bool(), n_targets)
                if drawn_by is None:
                    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                else:
                    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                    targets = _drawn(logits.detach(), ids, mask, drawn_by)
                    loss = nn.functional.cross_entropy(
                        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100
                    )
                loss.backward()
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


def _drawn(logits: Tensor, ids: Tensor, mask: Tensor, seed: int) -> Tensor:
    """(batch, length - 1) int64: next tokens as the model would write them, -100 at padding."""
    targets = torch.full_like(ids[:, 1:], -100)
    for row, (sample, real) in enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True)):
        text = sample[real].numpy().tobytes()
        digest = hashlib.sha256(text + str(seed).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        # the same tokens as text labels are there for
        where = (real[1:] & real[:-1]).nonzero().flatten()
        chances = logits[row, where.to(logits.device)].float().softmax(-1).cumsum(-1)
        level = torch.rand(len(where), 1, generator=generator).to(chances) * chances[:, -1:]
        drawn = torch.searchsorted(chances, level).flatten()
        targets[row, where.to(targets.device)] = drawn.clamp_max(chances.shape[-1] - 1)
    return targets


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
