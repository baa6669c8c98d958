"""Finds out which numbers of heads the config of a model can say.

Checkpoints hold one number of heads for all layers. Modelling code reads it from the config, and
some of it computes the size of a head from it, checks that it divides the hidden size, or has other
weights for every head: what a smaller number would load as is tried without weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

# An offload cache brings a weight onto the device for a mere look at its shape; this prevents it.
from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.adapters.attention import KEY_COUNTS, QUERY_COUNTS, AttentionBlock
from funcnet_plugin.errors import AdapterError

# Attributes of a transformers config, whatever config.json calls them.
HEAD_KEYS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def set_heads(config: Any, unit: AttentionBlock, groups: int) -> None:
    """Tell a transformers config how many groups of heads every layer has, and how large heads are.

    Args:
        config: changed in place.
        unit: of any layer.
    """
    counts = (groups * unit.query_heads, groups, unit.head_size)
    for key, count in zip(HEAD_KEYS, counts, strict=True):
        setattr(config, key, count)


def possible_groups(model: nn.Module, units: Sequence[AttentionBlock]) -> list[int]:
    """List the numbers of groups, below the present one, with which the model could be loaded.

    Args:
        model: may be on the meta device; weights are not read.
        units: of all layers.

    Returns:
        ascending, at least one.

    Raises:
        AdapterError: there is none.
    """
    architecture, widths = type(model).__name__, sorted({unit.width for unit in units})
    if len(widths) > 1:
        raise AdapterError(
            f"heads of {architecture} cannot be cut: its layers have {widths[0]} to {widths[-1]} "
            "key-value heads, and a config says one number for all; leave heads_ratio out."
        )
    if widths == [1]:
        raise AdapterError(
            f"heads of this {architecture} cannot be cut: all of a layer share one key-value head, "
            "and they go by whole groups; leave heads_ratio out."
        )
    found, why = [], ""
    for groups in range(1, widths[0]):
        config = copy.deepcopy(model.config)
        set_heads(config, units[0], groups)
        try:
            type(config).from_dict(config.to_dict())
        except Exception as error:  # of anybody's checks
            why = " ".join(str(error).split())
        else:
            found.append(groups)
    if not found:
        raise AdapterError(
            f"heads of this {architecture} cannot be cut: no smaller number of them is one that "
            f"transformers would load ({why.rstrip('.')}); leave heads_ratio out."
        )
    what = _departure(model, units, found[-1])
    if what is not None:
        raise AdapterError(
            f"heads of {architecture} cannot be cut: loaded with fewer of them, {what}, so the "
            "checkpoint would not be the pruned model; leave heads_ratio out."
        )
    return found


def _departure(model: nn.Module, units: Sequence[AttentionBlock], groups: int) -> str | None:
    """Say in what a model that is built with fewer heads differs from one whose heads were cut."""
    config = copy.deepcopy(model.config)
    set_heads(config, units[0], groups)
    try:
        with torch.device("meta"):
            built = type(model)(type(config).from_dict(config.to_dict()))
    except Exception as error:  # of anybody's modelling code
        return f"it cannot be built ({' '.join(str(error).split())[:150]})"
    shapes, others = _shapes(model), _shapes(built)
    for unit in units:
        for module in unit.projections:
            path = unit.path_of(module)
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in shapes:
                    shapes[name] = _cut(shapes[name], module is unit.out, unit, groups)
    for name in sorted({*shapes, *others}):
        if shapes.get(name) != others.get(name):
            return f"{name} would be {others.get(name)} and not {shapes.get(name)}"
    for unit in units:
        mine, theirs = _settings(unit.attention), _settings(built.get_submodule(unit.name))
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                return f"{unit.name}.{key} would be {theirs.get(key)} and not {mine.get(key)}"
    return None


def _cut(
    shape: tuple[int, ...], is_output: bool, unit: AttentionBlock, groups: int
) -> tuple[int, ...]:
    """Give the shape that a weight or bias of the unit has with so many groups."""
    axis = 1 if is_output else 0
    if axis >= len(shape):
        return shape  # the bias of the output
    return (*shape[:axis], shape[axis] * groups // unit.width, *shape[axis + 1 :])


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give the shapes of all parameters and buffers; weights are not read."""
    with disable_onloading():
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
        return {name: tuple(tensor.shape) for name, tensor in named}


def _settings(attention: nn.Module) -> dict[str, Any]:
    """Find the numbers that an attention was made with, but those that a cut sets."""
    return {
        key: value
        for key, value in vars(attention).items()
        if isinstance(value, int | float | str | None)
        and not key.startswith("_")
        and key not in (*QUERY_COUNTS, *KEY_COUNTS, "training", "layer_idx")
    }
