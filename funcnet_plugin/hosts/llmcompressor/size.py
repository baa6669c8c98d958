"""Estimates how large the result of a recipe will be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor.modifiers.quantization import QuantizationMixin
from torch import nn

from funcnet_plugin.adapters import count_parameters


def smallest_size(model: nn.Module, modifiers: Sequence[Any]) -> int:
    """Count the bytes that a pruned model takes at least.

    Args:
        model: before pruning; may be on the meta device.
        modifiers: of the recipe; quantization makes an eighth of float32 at best.
    """
    declared = getattr(model.config, "dtype", None)  # a name, once transformers has saved it
    dtype = declared if hasattr(declared, "itemsize") else model.dtype
    size = count_parameters(model) * dtype.itemsize
    ratios = [getattr(modifier, "pruning_ratio", 0.0) for modifier in modifiers]
    if any(isinstance(modifier, QuantizationMixin) for modifier in modifiers):
        return size // 8
    return round(size * (1.0 - max(ratios, default=0.0)))
