"""Refuses requests that cannot be met, before calibration starts."""

from __future__ import annotations

from typing import Any

from llmcompressor.core import active_session
from llmcompressor.modifiers import Modifier
from torch import nn

from funcnet_plugin.errors import CalibrationError, CheckpointError, RecipeError


def refuse_quantized(model: nn.Module) -> None:
    """Refuse to prune after quantization: scales and packed weights cannot be cut.

    Raises:
        RecipeError: a quantization modifier stands before ours in the recipe.
        CheckpointError: the model was loaded from a quantized checkpoint.
    """
    from transformers import PretrainedConfig

    config = getattr(model, "config", None)
    declared = getattr(config, "quantization_config", None)
    name = getattr(config, "name_or_path", "")
    if declared is None and name:
        # llm-compressor unpacks compressed-tensors checkpoints on loading and drops the entry
        try:
            declared = PretrainedConfig.get_config_dict(name)[0].get("quantization_config")
        except OSError:
            declared = None  # made in memory, or its files are gone: the modules decide below
    if declared is not None:
        raise CheckpointError(
            f"{name or 'the model'} is already quantized; prune the full-precision checkpoint and "
            "quantize after it (the quantization modifier follows in the recipe)."
        )
    if any(getattr(module, "quantization_scheme", None) is not None for module in model.modules()):
        raise RecipeError(
            "a quantization modifier stands before the pruning modifier in the recipe; its scales "
            "would belong to weights that are cut afterwards, so put pruning first."
        )


def refuse_width_pruning_before(modifier: Modifier) -> None:
    """Refuse width pruning before a modifier of the whole model, which acts before it can.

    Raises:
        RecipeError: the recipe names them the other way round.
    """
    for other in neighbours(modifier)[0]:
        if hasattr(other, "leaves_one_width"):
            raise RecipeError(
                f"{type(modifier).__name__} changes the model before {type(other).__name__} can "
                f"calibrate it; put {type(modifier).__name__} first, or make two runs of them."
            )


def neighbours(modifier: Modifier) -> tuple[list[Modifier], list[Modifier]]:
    """Find the modifiers before and behind one in the active recipe."""
    modifiers = active_session().lifecycle.recipe.modifiers
    position = next((i for i, m in enumerate(modifiers) if m is modifier), None)
    return ([], []) if position is None else (modifiers[:position], modifiers[position + 1 :])


def count_samples(calibration: Any) -> int | None:
    """Count the calibration samples; None where that shows only in the first layer.

    Args:
        calibration: the DataLoader of the run, or None.

    Raises:
        CalibrationError: no data.
    """
    if calibration is None:
        raise CalibrationError(
            "pruning needs calibration data and none was given; pass dataset= to oneshot "
            "(and do not choose pipeline='datafree')."
        )
    try:
        available = len(calibration.sampler)
        if available and calibration.batch_size is None:
            return None  # it counts batches that the dataset has made
    except (TypeError, AttributeError):
        return None  # an iterable dataset
    if available == 0:
        raise CalibrationError("the calibration data is empty.")
    return available
