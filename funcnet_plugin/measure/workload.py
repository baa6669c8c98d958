"""Says how much text a run reads: figures to plan with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from funcnet_plugin.measure.text import Text


@dataclass(frozen=True)
class Workload:
    """Says how much calibration text there is.

    Attributes:
        samples: windows.
        length: tokens of each, padding included.
        batch: windows of one forward pass, unless they are put together.
        joined: whether a run puts as many of them together as make it fast and memory holds.
    """

    samples: int
    length: int
    batch: int = 1
    joined: bool = True

    @classmethod
    def of(cls, text: Text) -> Workload:
        """Measure a text that was read."""
        shapes = [batch["input_ids"].shape for batch in text.batches]
        samples = sum(rows for rows, _ in shapes)
        length = math.ceil(sum(rows * tokens for rows, tokens in shapes) / samples)
        return cls(samples, length, max(rows for rows, _ in shapes), text.may_join)

    @property
    def tokens(self) -> int:
        """Count the tokens of all windows."""
        return self.samples * self.length
