"""Makes twins: models whose widths are rounded up, with random weights.

What weights hold does not change how fast they are multiplied. So a twin says what a model would
take if its widths suited the kernels, without pruning anything for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.bench.models import Model, model_on_meta
from funcnet_plugin.checkpoints.block import set_widths
from funcnet_plugin.export.files import copy_side_files, save


def rounded(widths: Sequence[int], aligned: int) -> list[int]:
    """Round widths up to multiples."""
    return [-(-width // aligned) * aligned for width in widths]


def twins_of(model: Model, aligned: Sequence[int], folder: Path) -> list[Model]:
    """Write the twins of a model: none where its widths are multiples already.

    A GGUF and a quantized checkpoint have none: they cannot be made from a config alone.

    Args:
        aligned: one twin for each.
        folder: an existing directory.
    """
    if model.kind != "checkpoint" or model.quantized:
        return []
    found, seen = [], {tuple(model.shape.widths)}
    for multiple in sorted(set(aligned)):
        widths = tuple(rounded(model.shape.widths, multiple))
        if widths in seen:
            continue
        seen.add(widths)
        name = f"{model.name} (widths up to {multiple})"
        path = folder / name.replace("/", "-")
        write_random(model.path, widths, path)
        found.append(Model(name, path, model.name, multiple))
    return found


def write_random(source: Path, widths: Sequence[int], out: Path) -> None:
    """Write a checkpoint with random weights that is like another but for its widths.

    Args:
        source: checkpoint directory, whose config and tokenizer are taken.
        widths: one per layer.
        out: directory, not there yet.
    """
    from transformers import AutoModelForCausalLM

    shapes = model_on_meta(source)
    config = shapes.config
    set_widths(config, bind(shapes, try_mlps=False).adapter.width_key, list(widths))
    if len(set(widths)) > 1:
        config.functional_network = {"kept_widths": list(widths)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    out.mkdir()
    save(model, out)
    copy_side_files(source, out)
