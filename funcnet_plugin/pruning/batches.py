"""Forward passes through a whole model over the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def model_inputs(
    model: nn.Module, calibration: Iterable[dict[str, Any]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What the model is called with, batch after batch, on its device.

    Yields:
        ids, mask, labels, each (batch, length) int64; mask is 1 where a token is no padding, and
        padding is -100 in labels.
    """
    for batch in calibration:
        ids = batch["input_ids"].to(model.device)
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids)
        yield ids, mask, ids.masked_fill(mask == 0, -100)
