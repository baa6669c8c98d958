"""Measures first and second moments of what enters an output projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.passes import model_inputs, on_gpu
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.text import Text

# Tokens that are multiplied at once; a product of few is slower, and each ends in float64.
_TOGETHER = 2048


class Moments:
    """Adds up first and second moments of activations, for one layer.

    Products are float32 (the activations have no more digits), their sums float64, so that a long
    calibration does not drown late samples: width^2 * 8 bytes, 1 GB at width 11008. They are on the
    CPU until the first tokens come, and then where these are: a GPU has no room for those of all
    layers. Tokens wait until there are enough for one large product.

    Attributes:
        count: tokens seen.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._total = torch.zeros(width, width, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, h: Tensor) -> None:
        """Take tokens in, sample by sample: then the result does not depend on the batches.

        Args:
            h: (n_tokens, width), any floating dtype.
        """
        if self._sum.device != h.device:
            self._sum, self._total = self._sum.to(h.device), self._gram.to(h.device)
        self.count += h.shape[0]
        self._sum += h.sum(0, dtype=torch.float64)
        self._waiting.append(h)
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        if self._waiting:
            h = torch.cat(self._waiting).float()
            self._waiting = []
            self._total += h.T @ h

    @property
    def _gram(self) -> Tensor:
        self._multiply()
        return self._total

    def state(self) -> dict[str, Tensor]:
        """Give all of it, for `load_state` of another run."""
        return {"count": torch.tensor(self.count), "sum": self._sum, "gram": self._gram}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.count = int(state["count"])
        self._sum, self._total = state["sum"], state["gram"]

    def to(self, device: torch.device | str) -> Moments:
        """Give the same tokens on another device."""
        moved = Moments(len(self._sum))
        moved.load_state({key: value.to(device) for key, value in self.state().items()})
        return moved

    def counted_as(self, count: int) -> Moments:
        """Give the same means as if of so many tokens: what these weigh beside others."""
        found = Moments(len(self._sum))
        factor = count / max(self.count, 1)
        found.count, found._sum, found._total = count, self._sum * factor, self._gram * factor
        return found

    def merge(self, processes: Processes) -> None:
        """Take the tokens of the other processes in."""
        self.count = processes.total(self.count)
        self._sum, self._total = processes.sum(self._sum), processes.sum(self._gram)

    @property
    def mean(self) -> Tensor:
        """Compute E[h], (width,), float64."""
        return self._sum / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """Compute E[h h'], (width, width), float64, not centred."""
        return self._gram / max(self.count, 1)

    @property
    def variance(self) -> Tensor:
        """Compute the population variance, (width,), float64, never negative."""
        raw = self._gram.diagonal() / max(self.count, 1) - self.mean.square()
        return raw.clamp_min(0.0)


def waiting_bytes(width: int, itemsize: int) -> int:
    """Count the bytes of the tokens that wait for a product."""
    return _TOGETHER * width * itemsize


def damping(second: Tensor, ridge: float) -> float:
    """Compute what is added to the diagonal of second moments before they are inverted.

    Args:
        second: (width, width), float64.
        ridge: how much, relative to the mean of the diagonal, > 0.
    """
    # of what was never active it is tiny, which keeps the system solvable; all is zero there
    return max(ridge * float(second.diagonal().mean()), torch.finfo(second.dtype).tiny)


@torch.no_grad()
def moments_of(model: nn.Module, text: Text, units: Sequence[Unit]) -> dict[int, Moments]:
    """Measure moments in passes through the whole model.

    Args:
        model: dense, in memory.
        text: without padding.
        units: which are measured.

    Returns:
        layer -> moments of its activations over all tokens, on the CPU.
    """
    with on_gpu(model, besides=sum(8 * unit.n_columns**2 for unit in units)):
        found = {unit.index: Moments(unit.n_columns) for unit in units}

        def watch(unit: Unit) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple) -> None:
                h = args[0].flatten(0, -2)
                check_finite(h, f"layer {unit.index}: inputs of the down projection of {unit.name}")
                found[unit.index].add(h)

            return hook

        with hooked(unit.output.register_forward_pre_hook(watch(unit)) for unit in units):
            for ids, mask, _ in model_inputs(model, text.batches, "moments of its own text"):
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)  # no logits
        return {index: moments.to("cpu") for index, moments in found.items()}
