"""Looks at what a repair gives before a unit gets it. Every repair is asked here, also a plugin's.

A weight of another shape would fail somewhere later, and a bias that the saved config does not know
would be dropped when the model is loaded again, in silence.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.repair.repair import Cut, Repair, Repaired


def checked_repair(repair: Repair, cut: Cut, repaired: Repaired) -> Repaired:
    """Give what a repair gave.

    Raises:
        RecipeError: it is of another shape, or a bias that would be lost.
    """
    unit = cut.unit
    where = f"layer {unit.index}: the repair {repair.name}"
    expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "an output_weight": (repaired.output_weight, (unit.hidden_size, len(cut.columns))),
        "a bias": (repaired.bias, (unit.hidden_size,)),
    }
    for what, (given, shape) in expected.items():
        if given is not None and tuple(given.shape) != shape:
            raise RecipeError(
                f"{where} gave {what} of shape {tuple(given.shape)} and must give {shape}; correct "
                "it, or take another repair."
            )
    if repaired.bias is not None and unit.output.bias is None and not repair.adds_bias:
        raise RecipeError(
            f"{where} gave a bias to a projection that has none, which would be lost when the "
            "model is loaded again; its class must say so with adds_bias."
        )
    return repaired
