"""Keeps one group's signals within a given memory.

As long as they fit, they are kept as they come. Beyond that they are merged and truncated: what
came so far is replaced by fewer rows with (nearly) the same second moment, the strongest directions
of the standardised signals. Means and deviations stay exact, so z-scoring does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.errors import DecompositionError
from funcnet_plugin.ica.columns import ColumnMoments, parts
from funcnet_plugin.ica.signals import Signals

_BLOCK = 1024


@dataclass(frozen=True)
class TruncatedSignals:
    """Stands for signals in `reduce_time`: fewer rows than tokens, centred already.

    Attributes:
        factor: (n_rows, n_signals), float32, ``factor' factor`` is the centred second moment.
        mean, scale: (n_signals,), float64, of the signals themselves.
        n_tokens: that the rows stand for.
    """

    factor: Tensor
    mean: Tensor
    scale: Tensor
    n_tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.factor.shape)

    def rows(self, *, reuse: bool = False) -> Iterator[Tensor]:
        """Give parts as `Signals.rows` does."""
        scale = self.scale.float()
        for part in parts([self.factor], reuse=reuse):
            yield part.mul_(scale)

    @property
    def variance(self) -> float:
        return float((self.scale > 0).sum()) * self.n_tokens


class SignalStream:
    """Gathers the signals of one layer and one group.

    Args:
        n_signals: V.
        n_rows: what a truncation leaves, a few times the number of components.
        max_bytes: memory for the signals and the working copies of a truncation; None: no limit.

    Raises:
        DecompositionError: `max_bytes` is less than `least_bytes`.
    """

    def __init__(self, n_signals: int, n_rows: int, max_bytes: int | None = None) -> None:
        least = least_bytes(n_signals, n_rows)
        if max_bytes is not None and max_bytes < least:
            raise DecompositionError(
                f"max_memory of {max_bytes:,} bytes cannot hold {n_signals} signals; this layer "
                f"needs at least {least:,} (or fewer n_components)."
            )
        self._n_rows, self._max_bytes = n_rows, max_bytes
        self._blocks: list[Tensor] = []
        self._columns = ColumnMoments(n_signals)
        self._factor: Tensor | None = None  # centred, stands for the tokens before the blocks
        self._factor_mean: Tensor | None = None
        self._factor_tokens = 0

    @property
    def n_tokens(self) -> int:
        """Count the tokens that came in."""
        return self._columns.n_rows

    def add(self, block: Tensor) -> None:
        """Take in a block, (n_tokens, n_signals), any floating dtype; it is kept, not copied."""
        self._columns.add(block)
        self._blocks.append(block)
        if self._max_bytes is not None and self._needed() > self._max_bytes:
            self._truncate()

    def finish(self) -> Signals | TruncatedSignals:
        """Give the signals, standardised.

        Raises:
            DecompositionError: fewer than two tokens, or a value that is not finite.
        """
        if self.n_tokens < 2:
            raise DecompositionError("z-scoring needs at least two tokens.")
        if self._columns.unknown():
            raise DecompositionError(
                f"the signals of neurons {self._columns.unknown()} hold NaN or infinite values; "
                "run the calibration in bfloat16 or float32, where the model's activations do not "
                "overflow."
            )
        if self._factor is None:
            return Signals(tuple(self._blocks), self._columns.mean, self._columns.scale)
        if self._blocks:
            self._truncate()
        return TruncatedSignals(
            self._factor, self._columns.mean, self._columns.scale, self.n_tokens
        )

    def _needed(self) -> int:
        """Count bytes now and during a truncation: what is held, the factor, and a new one."""
        held = sum(block.numel() * block.element_size() for block in self._blocks)
        return held + 4 * len(self._columns.mean) * 2 * self._n_rows

    def _truncate(self) -> None:
        rows = sum(map(len, self._blocks))
        held = ColumnMoments(len(self._columns.mean), self._columns.mean.device)
        for block in self._blocks:
            held.add(block)
        mean = held.mean
        # what counts is variance after z-scoring, as far as it is known by now
        scale = self._columns.scale.float()
        columns = range(0, len(mean), _BLOCK)
        gram = sum(
            (part @ part.T).double()
            for part in (self._centred(c, mean, rows) * scale[c : c + _BLOCK] for c in columns)
        )
        vectors = torch.linalg.eigh(gram).eigenvectors[:, -self._n_rows :].float()
        factor = torch.empty(vectors.shape[1], len(mean), device=mean.device)
        for c in columns:
            factor[:, c : c + _BLOCK] = vectors.T @ self._centred(c, mean, rows)
        tokens = self._factor_tokens
        if self._factor is not None:
            mean = (mean * rows + self._factor_mean * tokens) / (tokens + rows)
        self._blocks = []
        self._factor, self._factor_mean, self._factor_tokens = factor, mean, tokens + rows

    def _centred(self, start: int, mean: Tensor, rows: int) -> Tensor:
        """Give some columns of all that is held, about one common mean.

        Blocks and factor are each about their own, so a row with the distance of the two means
        completes the second moment.
        """
        some = slice(start, start + _BLOCK)
        found = list(parts([block[:, some] for block in self._blocks], mean[some]))
        if self._factor is not None:
            tokens = self._factor_tokens
            apart = (mean - self._factor_mean)[some] * (tokens * rows / (tokens + rows)) ** 0.5
            found += [self._factor[:, some], apart.float()[None]]
        return torch.cat(found)


def least_bytes(n_signals: int, n_rows: int) -> int:
    """Compute what `SignalStream` needs at least.

    That is as many new rows as a truncation leaves, in float32, and the two factors.
    """
    return 4 * n_signals * 3 * n_rows
