"""Checks scores before anything is cut by them: their shape, finite, and not all alike.

A sort takes whatever it is given: NaN, or one number for all neurons, becomes an order by index
that looks like a result. Every scorer is asked here, also those of plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import NumbersError, RecipeError


def checked_scores(unit: Unit, scores: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the scores of one layer as they are compared: float64. Warn of those all alike.

    Args:
        scores: scorer -> (width,).

    Raises:
        RecipeError: a scorer gave something else.
        NumbersError: a score is NaN or infinite.
    """
    return {name: _checked(unit, name, score) for name, score in scores.items()}


def _checked(unit: Unit, name: str, score: Any) -> Tensor:
    where = f"layer {unit.index}: the scorer {name}"
    if not isinstance(score, Tensor):
        given = type(score).__name__
    elif score.is_complex() or score.dtype == torch.bool or tuple(score.shape) != (unit.width,):
        given = f"{tuple(score.shape)} of {str(score.dtype).removeprefix('torch.')}"
    else:
        given = None
    if given is not None:
        raise RecipeError(
            f"{where} gave {given} and must give a tensor of one real number per neuron, "
            f"({unit.width},); correct it, or take another scorer."
        )
    score = score.detach().double()
    bad = (~torch.isfinite(score)).nonzero().flatten().tolist()
    if bad:
        raise NumbersError(
            f"{where} gave NaN or infinite scores to {len(bad)} of {unit.width} neurons (the "
            f"first: {bad[:5]}); load the model in bfloat16 or float32, or take another scorer."
        )
    if all_alike(score):
        logger.warning(
            f"{where} gives all {unit.width} neurons the same score ({float(score[0]):g}), so it "
            f"does not say which of them go, and without another scorer their index decides; if "
            f"the layer should stay as it is, put {unit.name} into the recipe's ignore."
        )
    return score


def all_alike(score: Tensor) -> bool:
    """Tell whether a score, (width,), tells no two neurons apart."""
    return len(score) > 1 and bool(score.min() == score.max())
