"""Measures how far a pruned model's predictions are from the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import NumbersError
from funcnet_plugin.measure.finite import not_finite
from funcnet_plugin.measure.halving import Reading
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.joining import joined
from funcnet_plugin.measure.offloading import computed_again, device_of
from funcnet_plugin.measure.predictions import Predicted, head_of, one_by_one, padded
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.room import room_for
from funcnet_plugin.repair.kullback_leibler import kullback_leibler

# Windows that are read together, and what the model is called with.
Batch: TypeAlias = tuple[Sequence[Predicted], Mapping[str, Tensor]]


class Divergence:
    """Computes Kullback-Leibler divergences of the pruned model's predictions, in nats.

    Args:
        model: pruned; its weights may be offloaded.
        units: of all layers.
        processes: others that hold other windows.
        sent: whether weights come one by one: a backward pass computes layers again then.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        processes: Processes | None = None,
        *,
        sent: bool = False,
    ) -> None:
        self.processes = processes
        self._model, self._layer, self._head = model, units[0].decoder_layer, head_of(model)
        self._sent = sent
        self._room = room_for(
            model, units, device_of(model), backward=True, checkpointed=sent, compared=True
        )

    def batches(self, windows: Sequence[Predicted]) -> list[Batch]:
        """Put windows of like length together, as many as there is room for."""
        left = sorted(windows, key=lambda window: len(window.ids))
        text = one_by_one([w.ids for w in left], all(window.may_pad for window in left))
        found: list[Batch] = []
        for batch in joined(text, self._room):
            count = len(batch["input_ids"])
            found.append((left[:count], batch))
            left = left[count:]
        return found

    def read(
        self,
        batches: Sequence[Batch],
        what: str,
        step: Callable[[Sequence[Predicted], Tensor, Tensor], None],
    ) -> None:
        """Call a function with windows, ids and mask of every batch, in their order.

        Args:
            what: is done, for a bar.
            step: what does not fit into memory comes again in halves, so it must do nothing half.
        """
        waiting = [window for windows, _ in batches for window in windows]

        def with_windows(ids: Tensor, mask: Tensor, labels: Tensor) -> None:
            step(waiting[: len(ids)], ids, mask)
            del waiting[: len(ids)]

        with computed_again(self._model, self._layer) if self._sent else nullcontext():
            Reading(self._model, [batch for _, batch in batches], what).each(with_windows)

    def of(self, windows: Sequence[Predicted], ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the mean over the tokens of a batch, by what they count."""
        states = padded([window.states for window in windows], ids.shape[1])

        def beside(head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            hook.remove()  # or the call below would come here, too
            with torch.no_grad():
                dense = head(states.to(args[0]))
            return torch.cat([output, dense])

        hook = self._head.register_forward_hook(beside)
        # through the model, which may do more to logits than its head does
        with hooked([hook]):
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        pruned, dense = (half.flatten(0, 1) for half in logits.chunk(2))
        counts = torch.tensor([[window.weight] for window in windows]) / weight_of(windows)
        return kullback_leibler(pruned, dense, (mask * counts.to(mask.device)).flatten().float())

    def mean(self, windows: Sequence[Predicted]) -> float:
        """Compute the mean over all windows of all processes."""
        sums = torch.zeros(2, dtype=torch.float64)

        @torch.no_grad()
        def step(windows: Sequence[Predicted], ids: Tensor, mask: Tensor) -> None:
            weight = weight_of(windows)
            sums.add_(torch.tensor([weight * float(self.of(windows, ids, mask)), weight]))

        self.read(self.batches(windows), "comparing with the dense model", step)
        total, weight = sums if self.processes is None else self.processes.sum(sums)
        return float(total / weight)

    @torch.no_grad()
    def not_finite(self, windows: Sequence[Predicted]) -> NumbersError:
        """Make the error for windows whose mean is not finite, in this process or another."""
        what = "the distance from the dense model's predictions"
        found: list[NumbersError] = []

        def step(windows: Sequence[Predicted], ids: Tensor, mask: Tensor) -> None:
            if not found and not math.isfinite(float(self.of(windows, ids, mask))):
                found.append(not_finite(self._model, ids, mask, what))

        self.read(self.batches(windows), "looking for what is not finite", step)
        return found[0] if found else NumbersError(f"{what} is NaN or infinite in another process.")


def weight_of(windows: Sequence[Predicted]) -> float:
    """Add up what all tokens of some windows count."""
    return sum(window.weight * len(window.ids) for window in windows)
