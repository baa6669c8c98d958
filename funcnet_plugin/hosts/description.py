"""What a pruned model says about itself: the `functional_network` block of config.json."""

from __future__ import annotations

from typing import Any

from llmcompressor.modifiers import Modifier
from torch import nn

from funcnet_plugin import __version__


def settings_of(modifier: Modifier) -> dict[str, Any]:
    """The recipe fields that describe a run: not llm-compressor's own, nor where it keeps files."""
    left_out = {*Modifier.model_fields, "resume_dir"}
    return {key: value for key, value in modifier.model_dump().items() if key not in left_out}


def pruning_block(
    modifier: Modifier, model: nn.Module, before: int, after: int, counted: int, **found: Any
) -> dict[str, Any]:
    """The block's content.

    Args:
        modifier: with a field `pruning_ratio`.
        before, after: parameters of the model.
        counted: parameters that the ratio counts.
        found: what else is to be said; plain values, config.json holds no others.
    """
    return {
        "version": __version__,
        "modifier": type(modifier).__name__,
        "source_model": getattr(model.config, "name_or_path", "") or None,
        "settings": settings_of(modifier),
        "pruning_ratio_requested": modifier.pruning_ratio,
        "pruning_ratio_reached": (before - after) / counted,
        "parameters_before": before,
        "parameters_after": after,
        **found,
    }
