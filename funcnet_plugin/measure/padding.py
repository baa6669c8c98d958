"""Tells whether samples of different lengths may come in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.layer_calls import layer_calls
from funcnet_plugin.measure.recorder import real_tokens
from funcnet_plugin.measure.text import Text

_LENGTH = 8  # tokens that are tried
# How far the same tokens beside padding may be from themselves alone: rounding.
_NEAR, _NEAR_HALF = 1e-3, 5e-2


@torch.no_grad()
def takes_padding(model: nn.Module, units: Sequence[Unit], text: Text) -> bool:
    """Try padding on the right with some tokens, in the first layer.

    Every layer must be told which tokens are padding, because what is measured leaves them out, and
    the others must come out as they do alone. Some attention is told in another way, or not at all.

    Args:
        units: of all layers, in order.
        text: some tokens of its longest sample are taken.
    """
    tokens = torch.tensor(max(text.samples, key=len)[:_LENGTH])
    half = max(1, len(tokens) // 2)
    ids, mask = tokens.repeat(2, 1), torch.ones(2, len(tokens), dtype=torch.long)
    mask[1, half:] = 0
    calls, hidden = layer_calls(model, units, ids, mask)
    for unit, call in zip(units, calls, strict=True):
        try:
            real = real_tokens(call.attention_mask(unit), *ids.shape)
        except CalibrationError:  # a mask of a kind that cannot be read
            return False
        if real is None or not torch.equal(real.cpu(), mask.bool()):
            return False
    beside = calls[0].run(units[0], hidden)[1, :half].float()
    calls, hidden = layer_calls(model, units, ids[1:, :half], mask[1:, :half])
    alone = calls[0].run(units[0], hidden)[0].float()
    near = _NEAR if units[0].dtype in (torch.float32, torch.float64) else _NEAR_HALF
    return bool((beside - alone).norm() <= near * alone.norm())
