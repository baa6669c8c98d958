"""Writes what a pruned model says about itself, in memory and where it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor.modifiers import Modifier
from torch import nn

from funcnet_plugin import __version__
from funcnet_plugin.adapters import ModelLayout
from funcnet_plugin.adapters.head_counts import HEAD_KEYS
from funcnet_plugin.checkpoints import block as checkpoint
from funcnet_plugin.checkpoints.provenance import since_the_first_source
from funcnet_plugin.cut.heads import HeadPlan


def settings_of(modifier: Modifier) -> dict[str, Any]:
    """Give the fields that describe a run: not llm-compressor's own, nor where it keeps files."""
    left_out = {*Modifier.model_fields, "resume_dir", "text_cache"}
    if not getattr(modifier, "atlas", ""):
        left_out.add("atlas")  # with one, networks are those of the dense model
    return {key: value for key, value in modifier.model_dump().items() if key not in left_out}


def pruning_block(
    modifier: Modifier, model: nn.Module, before: int, after: int, counted: int, **found: Any
) -> dict[str, Any]:
    """Make the block `functional_network` of config.json.

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


def head_figures(heads: HeadPlan | None, kept: list[list[int]] | None) -> dict[str, Any]:
    """Say in the block which key-value heads are left, with their queries; nothing if none went.

    Args:
        heads: of the run.
        kept: per layer, of the model that the run found; None where none may go.
    """
    if heads is None or kept is None:
        return {}
    return {
        "original_key_value_heads": heads.original,
        "kept_key_value_heads": heads.kept,
        "kept_heads": kept,
    }


def describe(
    model: nn.Module,
    block: dict[str, Any],
    keys: Sequence[str],
    kept: list[list[int] | None] | None = None,
) -> None:
    """Write the block into the config, and let what is saved later say what pruning changed.

    Args:
        block: of this run, see `pruning_block`; what earlier runs did joins it.
        keys: config attributes that pruning changed.
        kept: neurons that are left of those that this run found, see
            `checkpoint.patch_save_pretrained`.
    """
    block, kept = since_the_first_source(model, block, kept)
    model._funcnet_kept = kept
    setattr(model.config, checkpoint.BLOCK_KEY, block)
    checkpoint.patch_save_pretrained(
        model,
        # the config when it is saved: saving may give the model another one (a quantized ChatGLM)
        lambda: checkpoint.saved_keys(model.config, keys),
        kept,
    )


def describe_widths(
    model: nn.Module,
    layout: ModelLayout,
    block: dict[str, Any],
    kept: dict[int, list[int]],
    *,
    biased: bool,
    heads_cut: bool,
) -> None:
    """Describe a model whose MLPs have other widths now.

    Args:
        layout: of the pruned model.
        block: see `pruning_block`.
        kept: layer -> its kept neurons in the model that this run found, if it was cut.
        biased: whether the repair gave the projections biases.
        heads_cut: whether the config has other numbers of heads now.
    """
    adapter = layout.adapter
    checkpoint.set_widths(model.config, adapter.width_key, layout.widths)
    keys = [adapter.width_key, *(HEAD_KEYS if heads_cut else ())]
    if biased and adapter.bias_key is not None:
        setattr(model.config, adapter.bias_key, True)
        keys.append(adapter.bias_key)
    describe(model, block, keys, [kept.get(i) for i in range(len(layout.blocks))])
