"""The loss's gradients over the calibration data, for scorers that ask for them.

The Fisher information is an expectation over what the model predicts, and estimated with labels
drawn from its predictions. With the labels of the text it is another matrix, largest where the
model is most mistaken (Kunstner et al. 2019, arXiv 1905.12558).

Everything is a mean over tokens: each predicted token counts alike, in whichever batch, beside
whatever padding and in whichever process it comes. A mean over batches of their mean losses would
let the few samples of a short last batch count more, and a mean over samples those of few tokens.
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
from funcnet_plugin.pruning.finite import check_finite, is_finite, not_finite
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
        model: dense, in memory, on one device; its parameters come back as they were, with the
            gradients that they had.
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
        CalibrationError: gradients of weights are asked for, and the weights are offloaded; or no
            sample has two tokens.
        NumbersError: the loss or a gradient is not finite.
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
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    outputs: dict[int, _OutputGradients] = {}
    n_targets = n_tokens = unit = 0
    try:
        for parameter, *_ in before:
            parameter.grad = None  # the user's own would be added to ours
            parameter.requires_grad_(id(parameter) in wanted)
        if of_outputs:
            outputs |= ((b.index, _OutputGradients(b)) for b in blocks)
        with torch.enable_grad():
            for ids, mask, labels in model_inputs(model, calibration, "gradients"):
                n_tokens += int(mask.sum())
                here = int((labels[:, 1:] != -100).sum())
                if here == 0:
                    continue  # one token predicts nothing, and the mean of no losses is NaN
                # The sum over tokens, in units of the first batch: as large as a mean loss in half
                # precision, and the same to the last bit where all batches have as many tokens.
                unit = unit or here
                n_targets += here
                for output in outputs.values():
                    output.expect(mask.bool(), unit)
                if drawn_by is None:
                    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                else:
                    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                    targets = _drawn(logits.detach(), ids, mask, drawn_by)
                    loss = nn.functional.cross_entropy(
                        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100
                    )
                if not is_finite(loss):
                    raise not_finite(model, ids, mask, "the loss over the calibration data")
                (loss * (here / unit)).backward()
        total: Callable[[Tensor], Tensor] = (lambda x: x) if processes is None else processes.sum
        common = unit
        if processes is not None:
            common = max(processes.gather(unit))
            n_targets, n_tokens = (sum(processes.gather(n)) for n in (n_targets, n_tokens))
        if n_targets == 0:
            raise CalibrationError(
                "no calibration sample has a token after its first, so there is no loss to take "
                "gradients of; give longer samples."
            )
        found = {}
        for block in blocks:
            weights = second = None
            if of_weights:
                sums = [total(_gradient(m.weight) * (unit / common)) for m in block.projections]
                means = [gradient / (n_targets / common) for gradient in sums]
                weights = tuple(map(oriented, block.projections, means))
            if of_outputs:
                second = total(outputs[block.index].total) / n_tokens
            for gradient in (*(weights or ()), *([] if second is None else [second])):
                check_finite(gradient, f"layer {block.index}: the loss's gradients by {block.name}")
            weights = weights and tuple(weight.to(home) for weight in weights)
            found[block.index] = LossGradients(weights, None if second is None else second.to(home))
        return found
    finally:
        for output in outputs.values():
            output.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient if gradient is None else gradient.to(parameter.device)


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


def _gradient(weight: Tensor) -> Tensor:
    """Zero in a process that saw nothing to predict."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


class _OutputGradients:
    """Sum of g g' over tokens, g the gradient of the summed loss by the MLP's output."""

    def __init__(self, block: MLPBlock) -> None:
        size = out_size(block.down)
        device = block.down.weight.device
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._hook = block.down.register_forward_hook(self._forward)

    def expect(self, real: Tensor, unit: int) -> None:
        """Of the next batch: which tokens are text, and by what its summed loss is divided."""
        self._real, self._unit = real, unit

    def _forward(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # Without trainable weights nothing below the first MLP would ask for gradients.
        output = output if output.requires_grad else output.detach().requires_grad_(True)
        output.register_hook(self._backward)
        return output

    def _backward(self, gradient: Tensor) -> None:
        real = self._real.flatten().to(gradient.device)
        g = gradient.detach().flatten(0, -2)[real].float() * self._unit
        self.total += (g.T @ g).double()

    def remove(self) -> None:
        self._hook.remove()
