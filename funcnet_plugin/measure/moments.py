"""Measures first and second moments of what enters an output projection."""

from __future__ import annotations

import torch
from torch import Tensor

from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.products import tf32

# Tokens that are multiplied at once; a product of few is slower, and each ends in float64.
_TOGETHER = 2048
# Rows of the second moment that a CPU computes at once, up to the diagonal: half the work of all,
# and half the time.
_STRIP = 512
# Their products are exact in TF32, which keeps eleven bits of a factor.
_EXACT_IN_TF32 = (torch.bfloat16, torch.float16)


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
        self._mirrored = True  # or only what is left of the diagonal counts

    def add(self, h: Tensor) -> None:
        """Take tokens in, sample by sample: then the result does not depend on the batches.

        Args:
            h: (n_tokens, width), any floating dtype.
        """
        if self._sum.device != h.device:
            if self.count:
                self._sum, self._total = self._sum.to(h.device), self._gram.to(h.device)
            else:  # a gigabyte of zeros need not be sent
                self._sum, self._total = (
                    torch.zeros_like(zeros, device=h.device) for zeros in (self._sum, self._total)
                )
        self.count += h.shape[0]
        self._sum += h.sum(0, dtype=torch.float64)
        self._waiting.append(h)
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        if not self._waiting:
            return
        h = torch.cat(self._waiting)
        self._waiting = []
        with tf32(h.dtype in _EXACT_IN_TF32):
            h = h.float()
            if h.device.type != "cpu":
                self._total += h.T @ h
                return
            for start in range(0, len(self._total), _STRIP):
                end = start + _STRIP
                self._total[start:end, :end] += h[:, start:end].T @ h[:, :end]
            self._mirrored = False

    @property
    def _gram(self) -> Tensor:
        self._multiply()
        if not self._mirrored:
            for start in range(_STRIP, len(self._total), _STRIP):
                end = start + _STRIP
                self._total[:start, start:end] = self._total[start:end, :start].T
            self._mirrored = True
        return self._total

    def state(self) -> dict[str, Tensor]:
        """Give all of it, for `load_state` of another run."""
        return {"count": torch.tensor(self.count), "sum": self._sum, "gram": self._gram}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.count = int(state["count"])
        self._sum, self._total, self._mirrored = state["sum"], state["gram"], True

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


def product_bytes(width: int, itemsize: int, device: str) -> int:
    """Count the bytes of one product: its tokens, their float32 copy, and what comes out.

    Args:
        width: of the activations.
        itemsize: bytes of one.
        device: its type.
    """
    rows = min(_STRIP, width) if device == "cpu" else width
    return _TOGETHER * width * (itemsize + 4) + 4 * rows * width


def product_operations(width: int, device: str) -> float:
    """Count the multiplications and additions for one token."""
    return width**2 + _STRIP * width if device == "cpu" else 2.0 * width**2


def damping(second: Tensor, ridge: float) -> float:
    """Compute what is added to the diagonal of second moments before they are inverted.

    Args:
        second: (width, width), float64.
        ridge: how much, relative to the mean of the diagonal, > 0.
    """
    # of what was never active it is tiny, which keeps the system solvable; all is zero there
    return max(ridge * float(second.diagonal().mean()), torch.finfo(second.dtype).tiny)
