"""Changes what neurons give their MLP, without cutting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit


def change_activity(unit: Unit, gain: Tensor, shift: Tensor | None = None) -> RemovableHandle:
    """Multiply what enters the output projection of a unit, and add to it.

    Weights stay as they are, also quantized and offloaded ones.

    Args:
        unit: hooked until the returned handle is removed.
        gain: (n_columns,), what each activity is multiplied with.
        shift: (n_columns,), what is added then; nothing if not given.
    """

    # a copy to a GPU in every pass would wait for all that was sent there
    at_hand: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    def change(module: torch.nn.Module, args: tuple) -> tuple:
        given = args[0]
        place = (given.device, given.dtype)
        if place not in at_hand:
            at_hand[place] = (gain.to(given), None if shift is None else shift.to(given))
        factor, more = at_hand[place]
        activity = given * factor
        return (activity if more is None else activity + more, *args[1:])

    return unit.output.register_forward_pre_hook(change)


def apply_mask(unit: Unit, keep: Sequence[int]) -> RemovableHandle:
    """Let only the pieces `keep` of one unit reach its output.

    The output is that of the unit with the others cut out and nothing repaired.

    Args:
        unit: hooked until the returned handle is removed.
        keep: indices below the width of the unit.
    """
    mask = torch.zeros(unit.n_columns)
    mask[unit.columns_of(torch.tensor(list(keep)))] = 1
    return change_activity(unit, mask)
