"""Takes the loss's gradients over the calibration data, for scorers that ask for them.

The Fisher information is an expectation over what the model predicts, so the curvature of the loss
is taken at labels drawn from its predictions. With the labels of the text it is another matrix,
largest where the model is most mistaken (Kunstner et al. 2019, arXiv 1905.12558).

Everything is a mean over tokens: each predicted token counts alike, in whichever batch, beside
whatever padding and in whichever process it comes. A mean over batches of their mean losses would
let the few samples of a short last batch count more, and a mean over samples those of few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext

import torch
from compressed_tensors.offload import disable_onloading
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.finite import check_finite, is_finite, not_finite
from funcnet_plugin.measure.gradient_sums import GradientSums, OutputSums, WeightSums
from funcnet_plugin.measure.halving import Reading
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.joining import joined
from funcnet_plugin.measure.offloading import computed_again, device_of, is_sent
from funcnet_plugin.measure.passes import NO_TARGET, of_no_weight, on_gpu
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.room import room_for
from funcnet_plugin.measure.text import Text
from funcnet_plugin.measure.token_loss import drawn_tokens, text_tokens, token_loss


def weight_gradients(
    model: nn.Module, text: Text, units: Sequence[Unit], processes: Processes | None = None
) -> dict[int, tuple[Tensor, ...]]:
    """Take the gradients of the next-token loss by the weights of some units.

    The loss is the mean negative log-likelihood, whatever the model's own may add to it. One
    forward and backward pass goes over all samples, through the whole model.

    Args:
        model: dense; its parameters come back as they were, with the gradients that they had. Its
            weights may be offloaded.
        text: padding is no target.
        units: which are asked about.
        processes: others that read other samples.

    Returns:
        layer -> for each of the unit's projections (out, in), the mean over predicted tokens, at
        least float32, on the device that the weights had before.

    Raises:
        CalibrationError: no sample has two tokens.
        NumbersError: the loss or a gradient is not finite.
    """
    home = _home(model)
    with disable_onloading():
        needed = sum(max(4, w.element_size()) * w.numel() for unit in units for w in unit.weights)
    with on_gpu(model, besides=needed, backward=True), of_no_weight(model):
        watched = [
            WeightSums(module, unit, _place(model, unit))
            for unit in units
            for module in unit.projections
        ]
        passed = _backward_passes(model, text, units, processes, None, watched)
        found = {}
        for unit in units:
            sums = [passed.over_processes(w.take()) for w in watched if w.unit is unit]
            means = [total.div_(passed.n_targets).to(home) for total in sums]
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
    home = _home(model)
    needed = sum(8 * unit.hidden_size**2 for unit in units)
    with on_gpu(model, besides=needed, backward=True), of_no_weight(model):
        watched = [OutputSums(unit, _place(model, unit)) for unit in units]
        passed = _backward_passes(model, text, units, processes, seed, watched)
        found = {}
        for unit, output in zip(units, watched, strict=True):
            second = passed.over_processes(output.take()).div_(passed.n_tokens)
            _check(unit, [second])
            found[unit.index] = second.to(home)
        return found


def _home(model: nn.Module) -> torch.device:
    """Say where gradients wait: where the weights are between passes, if all of them are there."""
    with disable_onloading():
        device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" or is_sent(model) else device


def _place(model: nn.Module, unit: Unit) -> torch.device:
    """Say where sums are: a device without room for all weights has none for all sums."""
    return torch.device("cpu") if is_sent(model) else unit.device


def _check(unit: Unit, gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        check_finite(gradient, f"layer {unit.index}: the loss's gradients by {unit.name}")


class _Passed:
    """Counts what the backward passes saw, in all processes.

    Attributes:
        n_targets, n_tokens: predicted tokens, and tokens that are no padding.
    """

    def __init__(self, n_targets: int, n_tokens: int, processes: Processes | None) -> None:
        self.n_targets, self.n_tokens = n_targets, n_tokens
        self.over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor
        if processes is not None:
            self.over_processes = processes.sum
            self.n_targets, self.n_tokens = (processes.total(n) for n in (n_targets, n_tokens))
        if self.n_targets == 0:
            raise CalibrationError(
                "no calibration sample has a token after its first, so there is no loss to take "
                "gradients of; give longer samples."
            )


def _backward_passes(
    model: nn.Module,
    text: Text,
    units: Sequence[Unit],
    processes: Processes | None,
    seed: int | None,
    watched: Sequence[GradientSums],
) -> _Passed:
    """Run the model forward and backward over all samples; labels are the text's without a seed."""
    logger.info("taking the loss's gradients over the calibration data")
    sent = is_sent(model)
    room = room_for(model, units, device_of(model), backward=True, checkpointed=sent)
    reading = Reading(model, joined(text, room), "gradients")
    n_targets = n_tokens = 0

    def step(ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        nonlocal n_targets, n_tokens
        here = int((labels[:, 1:] != NO_TARGET).sum())
        if here:  # one token predicts nothing
            for gradients in watched:
                gradients.expect(mask.bool())
            # of the sum: float16 has no digits left for a mean over thousands of tokens
            _loss(model, ids, mask, labels, seed).backward()
        n_targets += here
        n_tokens += int(mask.sum())

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(
            computed_again(model, units[0].decoder_layer) if sent else nullcontext()
        )
        stack.enter_context(hooked(gradients.watch(reading) for gradients in watched))
        reading.each(step)
    return _Passed(n_targets, n_tokens, processes)


def _loss(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor, seed: int | None) -> Tensor:
    """Run the model forward, to the loss summed over predicted tokens.

    Raises:
        CalibrationError: the model does not predict behind every token.
        NumbersError: the loss is not finite.
    """
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if logits.shape[:2] != ids.shape:
        raise CalibrationError(
            f"{type(model).__name__} gives logits of {tuple(logits.shape[:2])} for tokens of "
            f"{tuple(ids.shape)}, so gradients of its loss cannot be taken; choose a scorer that "
            "needs none, such as effect."
        )
    targets = text_tokens(labels) if seed is None else drawn_tokens(logits, ids, mask, seed)
    loss = token_loss(logits.flatten(0, 1), targets.to(logits.device).flatten())
    if not is_finite(loss):
        raise not_finite(model, ids, mask, "the loss over the calibration data")
    return loss
