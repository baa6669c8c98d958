"""Requests that cannot be met, refused before calibration starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from compressed_tensors.utils import match_name
from llmcompressor.core import active_session
from llmcompressor.modifiers import Modifier
from torch import nn

from funcnet_plugin.adapters import MLPAdapter, MLPBlock
from funcnet_plugin.errors import CalibrationError, CheckpointError, RecipeError
from funcnet_plugin.pruning.compensation import BEHIND_PRUNED_LAYERS
from funcnet_plugin.pruning.scorers import Scorer, get_scorers


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


def refuse_width_pruning_before(modifier: Modifier) -> None:
    """Modifiers of the whole model act before anything is calibrated, width pruning after it.

    Raises:
        RecipeError: the recipe names them the other way round.
    """
    for other in neighbours(modifier)[0]:
        if hasattr(other, "waits_for_all_layers"):
            raise RecipeError(
                f"{type(modifier).__name__} changes the model before {type(other).__name__} can "
                f"calibrate it; put {type(modifier).__name__} first, or make two runs of them."
            )


def neighbours(modifier: Modifier) -> tuple[list[Modifier], list[Modifier]]:
    """The modifiers before and behind one in the active recipe."""
    modifiers = active_session().lifecycle.recipe.modifiers
    position = next((i for i, m in enumerate(modifiers) if m is modifier), None)
    return ([], []) if position is None else (modifiers[:position], modifiers[position + 1 :])


def count_samples(calibration: Any) -> int | None:
    """How much data there is; None where that shows only in the first layer.

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


def check_groups(available: int | None, samples_per_group: int) -> None:
    """Scores are of whole groups.

    Args:
        available: see `count_samples`.

    Raises:
        CalibrationError: too few samples for one group.
    """
    if available is not None and available < samples_per_group:
        raise CalibrationError(
            f"one group needs samples_per_group={samples_per_group} samples and the calibration "
            f"data has {available}; give more samples (num_calibration_samples) or lower "
            "samples_per_group."
        )


def check_ignore(patterns: Sequence[str], blocks: Sequence[MLPBlock]) -> None:
    """Every pattern of `ignore` must mean something.

    Raises:
        RecipeError: one matches no MLP.
    """
    names = [block.name for block in blocks]
    for pattern in patterns:
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except re.error as error:
            raise RecipeError(f"ignore: {pattern!r} is no regular expression: {error}.") from error
        if not any(match_name(name, pattern) for name in names):
            raise RecipeError(
                f"ignore: {pattern!r} matches no MLP; they are called {names[0]} to "
                f"{names[-1]}, and a regular expression starts with 're:'."
            )


def find_scorers(names: Sequence[str], token_share: float, fisher_labels: str) -> list[Scorer]:
    """The scorers that a recipe names.

    Raises:
        RecipeError: one is not there, is named twice, or none looks at what `token_share` or
            `fisher_labels` changes.
    """
    known = get_scorers()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"there is no scorer {name!r}; choose one of {', '.join(known)}, or install a "
                "package that brings it."
            )
    if len(set(names)) < len(names):
        raise RecipeError(f"union_with names the scorer itself: {names[0]}.")
    found = [known[name] for name in names]
    if token_share and not any(scorer.needs_moments for scorer in found):
        looking = [name for name, scorer in known.items() if scorer.needs_moments]
        raise RecipeError(
            "token_share is for scorers that look at activations and the recipe has none; leave it "
            f"out, or add one of {', '.join(looking)}."
        )
    if fisher_labels == "model" and not any(scorer.needs_output_gradients for scorer in found):
        looking = [name for name, scorer in known.items() if scorer.needs_output_gradients]
        raise RecipeError(
            "fisher_labels: model is for scorers that look at the loss's curvature and the recipe "
            f"has none; leave it out, or add one of {', '.join(looking)}."
        )
    return found


def check_own_text(share: float, looked_at: bool) -> None:
    """The model's own text serves what takes moments of activations.

    Args:
        looked_at: whether anything in the recipe does.

    Raises:
        RecipeError: nothing does.
    """
    if share and not looked_at:
        raise RecipeError(
            "own_text is for scorers that look at activations and for the repair, and the recipe "
            "has neither; leave it out."
        )


def check_alive(blocks: Sequence[MLPBlock]) -> None:
    """Networks are of signals that vary, and those of some MLP must.

    Args:
        blocks: the MLPs that may be cut.

    Raises:
        CheckpointError: the weights before the activation are all zero.
    """
    for block in blocks:
        if not any(bool(module.weight.any()) for module in block.inputs):
            raise CheckpointError(
                f"the MLP of layer {block.index} is dead: its weights are all zero, so "
                f"there are no networks in it; leave it out with ignore: [{block.name}], or "
                "check whether the checkpoint is whole."
            )


def check_ridge(ridge: float | str, compensation: str) -> None:
    """Repair behind pruned layers fits with one ridge.

    Raises:
        RecipeError: the ridge is to be chosen per layer.
    """
    if ridge == "auto" and compensation in BEHIND_PRUNED_LAYERS:
        raise RecipeError(
            "ridge: auto is for compensation: least_squares; give a number, such as 0.02, with "
            f"{compensation}."
        )


def check_bias(adapter: MLPAdapter, blocks: Sequence[MLPBlock]) -> None:
    """`compensation: bias` needs a place for it in the checkpoint.

    Raises:
        RecipeError: the architecture has none.
    """
    if adapter.bias_key is None and any(block.down.bias is None for block in blocks):
        raise RecipeError(
            f"compensation: bias cannot be saved for {adapter.name}: its modelling code has no "
            "bias on the down projection, and a stock reload would drop it; use compensation: "
            "least_squares (needs no bias) or none."
        )
