"""Silences neurons without cutting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit


def apply_mask(unit: Unit, keep: Sequence[int]) -> RemovableHandle:
    """Let only the pieces `keep` of one unit reach its output.

    The output is that of the unit with the others cut out and nothing repaired, weights stay as
    they are, also quantized and offloaded ones.

    Args:
        unit: hooked until the returned handle is removed.
        keep: indices below the width of the unit.
    """
    mask = torch.zeros(unit.n_columns)
    mask[unit.columns_of(torch.tensor(list(keep)))] = 1

    def silence(module: torch.nn.Module, args: tuple) -> tuple:
        return (args[0] * mask.to(args[0]), *args[1:])

    return unit.output.register_forward_pre_hook(silence)
