"""Tunes a pruned model to predict what the dense one does.

That is distillation (Hinton et al. 2015, arXiv 1503.02531). What is tuned is a low-rank change of
every projection, which is folded into the weights at the end: a few numbers for each row and column
can learn little by heart, and an optimizer of them needs little memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.projection import in_size, out_size
from funcnet_plugin.cut.surgery import assign_weight
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.passes import kept_where_it_runs, of_no_weight, on_gpu
from funcnet_plugin.measure.predictions import Predicted
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.repair.divergence import Divergence, weight_of
from funcnet_plugin.repair.low_rank import LowRank, projections_of

_RANK = 16
_TOKENS = 512  # of one step, all processes together ...
_STEPS = 32  # ... or fewer, so that an epoch has so many steps
_HELD_OUT = 16  # every sixteenth sample is not learned from, and says whether it helped
_WARMUP = 10  # steps
# Adam moves every number by about this much: of `up` in shares of the weight, of `down` of itself.
_RATE_UP, _RATE_DOWN = 4e-4, 0.05
_COPIES = 5  # of the numbers: they, gradients of a batch and of a step, two moments of these


@dataclass(frozen=True)
class Tuned:
    """Says how far the pruned model's predictions are from the dense model's.

    Attributes:
        divergence, divergence_before: mean Kullback-Leibler divergence of the prediction of a
            token, in nats, on samples that were not learned from.
    """

    divergence: float
    divergence_before: float


def tune(
    model: nn.Module,
    units: Sequence[Unit],
    predicted: Sequence[Predicted],
    *,
    epochs: int,
    seed: int,
    processes: Processes | None = None,
) -> Tuned:
    """Tune a pruned model; it stays as it is where that does not help.

    Args:
        model: changed in place; its weights may be offloaded.
        units: of all layers.
        predicted: by the dense model.
        epochs: passes over them.
        seed: of the order of windows, and of the changes' start.
        processes: others that hold other windows; all come to the same weights.

    Raises:
        NumbersError: the pruned model's predictions are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    learned, judging = _divided(predicted, processes)
    needed = tuning_bytes(units)
    with on_gpu(model, besides=needed, backward=True):
        with of_no_weight(model), kept_where_it_runs(model, needed, backward=True) as sent:
            divergence = Divergence(model, units, processes, sent=sent)
            changes = [
                LowRank(module, _RANK, generator)
                for unit in units
                for module in projections_of(unit.decoder_layer)
            ]
            before = divergence.mean(judging)
            if not math.isfinite(before):
                raise divergence.not_finite(judging)
            with hooked(change.watch() for change in changes):
                _learn(divergence, changes, learned, epochs, generator)
                after = divergence.mean(judging)
        if not after < before:
            if not math.isfinite(after):
                logger.warning(
                    "the tuning ran away to numbers that are not finite, so the model is left as "
                    "the linear repair made it."
                )
            return Tuned(before, before)
        _fold(changes, processes)
    return Tuned(after, before)


def tuning_bytes(units: Sequence[Unit]) -> int:
    """Count the bytes of the changes of all layers, and of what their optimizer keeps."""
    numbers = sum(
        _RANK * (in_size(module) + out_size(module))
        for unit in units
        for module in projections_of(unit.decoder_layer)
    )
    return 4 * _COPIES * numbers


def _divided(
    predicted: Sequence[Predicted], processes: Processes | None
) -> tuple[Sequence[Predicted], Sequence[Predicted]]:
    """Divide windows into those that are learned from, and those that judge."""
    judging = [p for p in predicted if p.sample % _HELD_OUT == _HELD_OUT - 1]
    if not (len(judging) if processes is None else processes.total(len(judging))):
        return predicted, predicted
    return [p for p in predicted if p.sample % _HELD_OUT != _HELD_OUT - 1], judging


def _fold(changes: Sequence[LowRank], processes: Processes | None) -> None:
    for change in changes:
        weight = change.changed_weight()
        if processes is not None:
            processes.gather(None)  # all have read it by now: they share one offloaded copy
        assign_weight(change.module, weight, "the tuned weights")


def _learn(
    divergence: Divergence,
    changes: Sequence[LowRank],
    windows: Sequence[Predicted],
    epochs: int,
    generator: torch.Generator,
) -> None:
    """Go over windows in steps of an optimizer; all processes take as many."""
    tokens, count = sum(len(window.ids) for window in windows), len(windows)
    if divergence.processes is not None:
        tokens = divergence.processes.total(tokens)
        count = max(divergence.processes.gather(count))  # so that no step is empty everywhere
    per_epoch = min(count, max(_STEPS, math.ceil(tokens / _TOKENS)))
    parts = [
        divergence.batches([windows[i] for i in part.tolist()])
        for _ in range(epochs)
        for part in torch.randperm(len(windows), generator=generator).tensor_split(per_epoch)
    ]
    sizes = [sum(len(windows) for windows, _ in part) for part in parts]
    steps = _Steps(divergence, changes, sizes)
    divergence.read([batch for part in parts for batch in part], "distillation", steps.add)
    steps.take_due()


class _Steps:
    """Adds up gradients, and takes a step whenever its windows have passed.

    Args:
        sizes: windows of each step, in this process.
    """

    def __init__(
        self, divergence: Divergence, changes: Sequence[LowRank], sizes: Sequence[int]
    ) -> None:
        self._divergence, self._sizes = divergence, list(sizes)
        self._numbers = [number for c in changes for number in (c.up, c.down)]
        # all numbers of one rate together: a GPU takes a step of them at once
        by_rate: dict[float, list[Tensor]] = {}
        for c in changes:
            by_rate.setdefault(_RATE_UP, []).append(c.up)
            by_rate.setdefault(_RATE_DOWN / math.sqrt(c.down.shape[1]), []).append(c.down)
        self._optimizer = torch.optim.Adam(
            [{"params": numbers, "lr": rate} for rate, numbers in by_rate.items()],
            betas=(0.9, 0.99),
            eps=1e-15,
        )
        count = len(sizes)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda n: min(1.0, (n + 1) / _WARMUP) * 0.5 * (1.0 + math.cos(math.pi * n / count)),
        )
        self._begin()

    def add(self, windows: Sequence[Predicted], ids: Tensor, mask: Tensor) -> None:
        """Add the gradients of a batch."""
        self.take_due()
        with torch.enable_grad():
            found = torch.autograd.grad(self._divergence.of(windows, ids, mask), self._numbers)
        weight = weight_of(windows)
        for number, gradient in zip(self._numbers, found, strict=True):
            number.grad.add_(gradient, alpha=weight)
        self._weight += weight
        self._passed += len(windows)

    def take_due(self) -> None:
        """Take the steps whose windows have passed; other processes may have some of them."""
        while self._sizes and self._passed == self._sizes[0]:
            self._sizes.pop(0)
            processes = self._divergence.processes
            if processes is not None:
                self._weight = sum(processes.gather(self._weight))
                for number in self._numbers:
                    number.grad = processes.sum(number.grad)
            for number in self._numbers:
                number.grad.div_(self._weight)
            self._optimizer.step()
            self._schedule.step()
            self._begin()

    def _begin(self) -> None:
        self._weight, self._passed = 0.0, 0
        for number in self._numbers:
            number.grad = torch.zeros_like(number)
