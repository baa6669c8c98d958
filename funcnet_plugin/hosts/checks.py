"""Requests that cannot be met, refused before calibration starts."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import RandomSampler

from funcnet_plugin.errors import CalibrationError, CheckpointError, RecipeError


def refuse_quantized(model: nn.Module) -> None:
    """Pruning comes before quantization: scales and packed weights cannot be cut.

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


def check_samples(calibration: Any, samples_per_group: int | None) -> None:
    """Enough data for what the recipe asks.

    Args:
        calibration: the DataLoader of the run, or None.
        samples_per_group: None where the scorer does not group samples.

    Raises:
        CalibrationError: no data, or too few samples for one group.
    """
    if calibration is None:
        raise CalibrationError(
            "pruning needs calibration data and none was given; pass dataset= to oneshot "
            "(and do not choose pipeline='datafree')."
        )
    try:
        available = len(calibration.sampler)
    except (TypeError, AttributeError):
        return  # an iterable dataset: how much there is shows only in the first layer
    if available == 0:
        raise CalibrationError("the calibration data is empty.")
    if samples_per_group is not None and available < samples_per_group:
        raise CalibrationError(
            f"one group needs samples_per_group={samples_per_group} samples and the calibration "
            f"data has {available}; give more samples (num_calibration_samples) or lower "
            "samples_per_group."
        )


def fix_sample_order(calibration: Any, seed: int) -> None:
    """Let the recipe's seed decide the order in which samples are drawn.

    llm-compressor shuffles with torch's global generator by default, so a run would depend on what
    was drawn before it in the same process.
    """
    import torch

    sampler = getattr(calibration, "sampler", None)
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        sampler.generator = torch.Generator().manual_seed(seed)
