"""Silencing neurons without cutting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import MLPBlock


def apply_mask(block: MLPBlock, keep: Sequence[int]) -> RemovableHandle:
    """Let only the neurons `keep` of one MLP reach its output.

    The output is that of the MLP with the others cut out and nothing repaired, weights stay as
    they are, also quantized and offloaded ones.

    Args:
        block: hooked until the returned handle is removed.
        keep: indices below the width of the block.
    """
    mask = torch.zeros(block.width)
    mask[list(keep)] = 1

    def silence(module: torch.nn.Module, args: tuple) -> tuple:
        return (args[0] * mask.to(args[0]), *args[1:])

    return block.down.register_forward_pre_hook(silence)
