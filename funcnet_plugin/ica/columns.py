"""Measures the mean and deviation of every column of a matrix that comes in blocks of rows.

The values are read in parts that stay in the cache, into memory that is there already: fresh memory
for every part would cost more than the arithmetic. Sums within a part are float32, since float64
ones take 16 times longer; sums of parts are float64, since the float32 sum over 1e5 tokens loses
the digits that a variance is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# A column whose deviation is below this share of its root mean square is constant: bfloat16 and
# float16 signals that do vary jump by 4e-3 and 5e-4, so only rounding lies underneath.
_CONSTANT = 1e-6
# What one part takes in float32. A CPU's cache is small; elsewhere few launches count.
_PART = {"cpu": 16 * 2**20}
_PART_ELSEWHERE = 256 * 2**20


def parts(
    blocks: Sequence[Tensor], mean: Tensor | None = None, *, reuse: bool = False
) -> Iterator[Tensor]:
    """Give the rows of blocks in float32, a part of them at a time.

    Args:
        blocks: each (n_tokens, n_columns), any floating dtype.
        mean: (n_columns,), float64, subtracted as exactly as in float64; None for nothing.
        reuse: give all parts in the same memory, where each overwrites the one before.

    Yields:
        (n, n_columns), float32.
    """
    if not blocks:
        return
    width, device = blocks[0].shape[1], blocks[0].device
    size = _rows(sum(map(len, blocks)), width, device.type)
    rounded = None if mean is None else mean.float()
    rest = None if mean is None else (mean - rounded).float()
    part, filled = torch.empty(size, width, device=device), 0
    for block in blocks:
        start = 0
        while start < len(block):
            n = min(size - filled, len(block) - start)
            rows, some = part[filled : filled + n], block[start : start + n]
            if mean is None:
                rows.copy_(some)
            elif some.dtype == torch.float64:
                rows.copy_(some - mean)
            else:
                # what rounding took from the mean is subtracted after it
                rows.copy_(some).sub_(rounded).sub_(rest)
            start, filled = start + n, filled + n
            if filled == size:
                yield part
                part, filled = part if reuse else torch.empty_like(part), 0
    if filled:
        yield part[:filled]


def part_bytes(n_rows: int, n_columns: int, device: str = "cpu") -> int:
    """Count the bytes of one part."""
    return 4 * _rows(n_rows, n_columns, device) * n_columns


def _rows(n_rows: int, n_columns: int, device: str) -> int:
    """Say how many rows a part has."""
    return min(n_rows, max(16, _PART.get(device, _PART_ELSEWHERE) // (4 * max(n_columns, 1))))


class ColumnMoments:
    """Adds up the mean and the squares about it of every column (Chan et al. 1983).

    Args:
        n_columns: of all blocks.
        device: of all blocks.

    Attributes:
        n_rows: seen.
        mean: (n_columns,), float64.
    """

    def __init__(self, n_columns: int, device: torch.device | str = "cpu") -> None:
        self.n_rows = 0
        self.mean = torch.zeros(n_columns, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self.mean)  # about the mean

    def add(self, block: Tensor) -> None:
        """Take rows in, (n, n_columns), any floating dtype."""
        if block.device != self.mean.device:
            self.mean, self._squares = self.mean.to(block.device), self._squares.to(block.device)
        # float64 keeps its digits if a mean of few of its rows goes first
        about = block[:64].mean(0) if block.dtype == torch.float64 and len(block) else None
        for part in parts([block], about, reuse=True):
            n = len(part)
            rough = part.mean(0)
            part.sub_(rough)
            apart = part.sum(0).double() / n  # what the rough mean misses
            squares = part.square_().sum(0).double() - n * apart.square()
            mean = rough.double() + apart
            if about is not None:
                mean += about
            total = self.n_rows + n
            moved = mean - self.mean
            self._squares += squares.clamp_min_(0.0)
            self._squares += moved.square() * (self.n_rows * n / total)
            self.mean += moved * (n / total)
            self.n_rows = total

    def unknown(self) -> list[int]:
        """List columns that hold NaN or infinite values, five at most."""
        return (~torch.isfinite(self.mean)).nonzero().flatten()[:5].tolist()

    @property
    def scale(self) -> Tensor:
        """Compute 1 / std, (n_columns,), float64, and 0 for a column that only rounding varies."""
        variance = self._squares / max(self.n_rows, 1)
        std = variance.sqrt()
        constant = std <= _CONSTANT * (self.mean.square() + variance).sqrt()
        return torch.where(constant, 0.0, 1.0 / std.masked_fill(constant, 1.0))
