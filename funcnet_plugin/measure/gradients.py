"""Takes the loss's gradients over the calibration data, for scorers that ask for them.

The Fisher information is an expectation over what the model predicts, so the curvature of the loss
is taken at labels drawn from its predictions. With the labels of the text it is another matrix,
largest where the model is most mistaken (Kunstner et al. 2019, arXiv 1905.12558).

Everything is a mean over tokens: each predicted token counts alike, in whichever batch, beside
whatever padding and in whichever process it comes. A mean over batches of their mean losses would
let the few samples of a short last batch count more, and a mean over samples those of few tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.finite import check_finite, is_finite, not_finite
from funcnet_plugin.measure.passes import model_inputs, on_gpu
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.text import Text


def weight_gradients(
    model: nn.Module, text: Text, units: Sequence[Unit], processes: Processes | None = None
) -> dict[int, tuple[Tensor, ...]]:
    """Take the gradients of the next-token loss by the weights of some units.

    It is one forward and backward pass over all samples, through the whole model.

    Args:
        model: dense, in memory, on one device; its parameters come back as they were, with the
            gradients that they had.
        text: padding is no target.
        units: which are asked about.
        processes: others that read other samples.

    Returns:
        layer -> for each of the unit's projections (out, in), the mean over predicted tokens, on
        the device that the weights had before.

    Raises:
        CalibrationError: the weights are offloaded, or no sample has two tokens.
        NumbersError: the loss or a gradient is not finite.
    """
    _check_weights_stay(units)
    home = next(model.parameters()).device
    weights = [module.weight for unit in units for module in unit.projections]
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    with on_gpu(model, besides=needed), _asking_for(model, weights):
        passed = _backward_passes(model, text, processes, None, {})
        found = {}
        for unit in units:
            sums = [
                passed.over_processes(_gradient(m.weight) * (passed.unit / passed.common))
                for m in unit.projections
            ]
            means = [gradient / (passed.n_targets / passed.common) for gradient in sums]
            means = [oriented(m, g).to(home) for m, g in zip(unit.projections, means, strict=True)]
            _check(unit, means)
            found[unit.index] = tuple(means)
        return found


def output_gradients(
    model: nn.Module,
    text: Text,
    units: Sequence[Unit],
    processes: Processes | None = None,
    *,
    seed: int,
) -> dict[int, Tensor]:
    """Take the second moments of the loss's gradients by the outputs of some units.

    Args:
        model, text, units, processes: see `weight_gradients`; weights may be offloaded.
        seed: of the labels, which the model draws, one for every token. What it draws for a sample
            depends on that sample alone, not on the batch, order or process it comes in.

    Returns:
        layer -> (hidden, hidden), float64: E[g g'], g the gradient of the summed loss by the
        unit's output at one token: how much the loss bends in which direction of the output (the
        gradient side of K-FAC, arXiv 1503.05671). On the device that the weights had before.

    Raises:
        CalibrationError: no sample has two tokens.
        NumbersError: the loss or a gradient is not finite.
    """
    home = next(model.parameters()).device
    needed = sum(8 * unit.hidden_size**2 for unit in units)
    with on_gpu(model, besides=needed), _asking_for(model, []):
        outputs = {unit.index: _OutputGradients(unit) for unit in units}
        try:
            passed = _backward_passes(model, text, processes, seed, outputs)
        finally:
            for output in outputs.values():
                output.remove()
        found = {}
        for unit in units:
            second = passed.over_processes(outputs[unit.index].total) / passed.n_tokens
            _check(unit, [second])
            found[unit.index] = second.to(home)
        return found


def _check_weights_stay(units: Sequence[Unit]) -> None:
    """Refuse offloaded weights.

    Gradients gather in the tensor that the pass used, and offloading makes a new one each time.

    Raises:
        CalibrationError: they are offloaded.
    """
    if any(unit.output.weight is not unit.output.weight for unit in units):
        raise CalibrationError(
            "taylor adds up gradients of weights, and this model's weights are offloaded; load it "
            "into memory as a whole, or take a scorer without them, surgeon for instance."
        )


def _check(unit: Unit, gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        check_finite(gradient, f"layer {unit.index}: the loss's gradients by {unit.name}")


@contextmanager
def _asking_for(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let a backward pass leave gradients in these weights only; all comes back as it was."""
    wanted = {id(weight) for weight in weights}
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, *_ in before:
            parameter.grad = None  # the user's own would be added to ours
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient if gradient is None else gradient.to(parameter.device)


class _Passed:
    """Counts what the backward passes saw, in all processes.

    Attributes:
        unit: by what this process divided its summed losses; `common`: the largest of all.
        n_targets, n_tokens: predicted tokens, and tokens that are no padding.
    """

    def __init__(
        self, unit: int, n_targets: int, n_tokens: int, processes: Processes | None
    ) -> None:
        self.unit, self.common = unit, unit
        self.n_targets, self.n_tokens = n_targets, n_tokens
        self.over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor
        if processes is not None:
            self.over_processes = processes.sum
            self.common = max(processes.gather(unit))
            self.n_targets, self.n_tokens = (processes.total(n) for n in (n_targets, n_tokens))
        if self.n_targets == 0:
            raise CalibrationError(
                "no calibration sample has a token after its first, so there is no loss to take "
                "gradients of; give longer samples."
            )


def _backward_passes(
    model: nn.Module,
    text: Text,
    processes: Processes | None,
    seed: int | None,
    outputs: dict[int, _OutputGradients],
) -> _Passed:
    """Run the model forward and backward over all samples; labels are the text's without a seed."""
    logger.info("taking the loss's gradients over the calibration data")
    n_targets = n_tokens = unit = 0
    with torch.enable_grad():
        for ids, mask, labels in model_inputs(model, text.batches, "gradients"):
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
            if seed is None:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            else:
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
                targets = _drawn(logits.detach(), ids, mask, seed)
                loss = nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100
                )
            if not is_finite(loss):
                raise not_finite(model, ids, mask, "the loss over the calibration data")
            (loss * (here / unit)).backward()
    return _Passed(unit, n_targets, n_tokens, processes)


def _drawn(logits: Tensor, ids: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draw next tokens as the model writes them, (batch, length - 1) int64, -100 at padding."""
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
    """Take the gradient, which is zero in a process that saw nothing to predict."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


class _OutputGradients:
    """Adds up g g' over tokens, g the gradient of the summed loss by the unit's output."""

    def __init__(self, unit: Unit) -> None:
        size = unit.hidden_size
        self.total = torch.zeros(size, size, dtype=torch.float64, device=unit.device)
        self._hook = unit.output.register_forward_hook(self._forward)

    def expect(self, real: Tensor, unit: int) -> None:
        """Say of the next batch which tokens are text, and by what its summed loss is divided."""
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
        """Leave the unit as it was."""
        self._hook.remove()
