"""Cutting neurons out of an MLP, in place.

The module objects stay: other modifiers key their tables by them, and a new Linear would be left
out of a quantization that follows. Parameters are assigned, never written through ``.data``: an
offload cache (CPU or disk) sees assignments only. Several processes share one offloaded copy, so
what is added to a parameter is added before any of them may write: here before the sizes change,
for which all meet, and never to what stands there by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.projection import oriented, out_size, set_in_size, set_out_size
from funcnet_plugin.pruning.compensation import (
    BEHIND_PRUNED_LAYERS,
    Moments,
    bias_repair,
    choose_ridge,
    least_squares_repair,
)
from funcnet_plugin.pruning.finite import check_finite


@torch.no_grad()
def cut_and_repair(
    block: MLPBlock,
    keep: Tensor,
    compensation: str,
    moments: Moments | None,
    ridge: float | str,
    held_out: Moments | None = None,
) -> float | str:
    """Cut an MLP down to `keep` and repair its output.

    Args:
        block: changed in place.
        keep: (n_kept,), int64, ascending.
        compensation: "none", "bias" or "least_squares", as which those of BEHIND_PRUNED_LAYERS
            begin.
        moments: of the uncut MLP's inner activations; None for "none".
        ridge: see `least_squares_repair`.
        held_out: moments of some of the tokens, by which the ridge is chosen instead.

    Returns:
        the ridge that was taken.
    """
    weight = oriented(block.down, block.down.weight)
    keep = keep.to(weight.device)
    if compensation == "bias":
        bias = bias_repair(weight, moments.mean, keep)
        if block.down.bias is not None:
            bias = bias + block.down.bias.to(bias)
        cut_neurons(block, keep)
        set_down_bias(block, bias)
    elif compensation in ("least_squares", *BEHIND_PRUNED_LAYERS):
        if held_out is not None:
            ridge = choose_ridge(
                weight, moments.to(weight.device), held_out.to(weight.device), keep
            )
        second = moments.second.to(weight.device)  # they may have waited on the CPU
        repaired = least_squares_repair(weight, second, keep, ridge)
        cut_neurons(block, keep, repaired)
    else:
        cut_neurons(block, keep)
    return ridge


@torch.no_grad()
def cut_neurons(block: MLPBlock, keep: Tensor, down_weight: Tensor | None = None) -> None:
    """Keep only the neurons `keep` of one MLP.

    Args:
        block: its modules are changed in place; dtype, device, offloading and requires_grad stay.
        keep: (n_kept,), int64, ascending.
        down_weight: (hidden, n_kept), any floating dtype; a repaired down projection, instead of
            the kept columns of the old one.
    """
    rows = torch.cat([keep, keep + block.width]) if block.fused else keep
    for module in block.inputs:
        weight = oriented(module, module.weight)
        _assign(block, module, "weight", oriented(module, weight[rows.to(weight.device)]))
        if module.bias is not None:
            _assign(block, module, "bias", module.bias[rows.to(module.bias.device)])
        set_out_size(module, len(rows))
    if down_weight is None:
        weight = oriented(block.down, block.down.weight)
        down_weight = weight[:, keep.to(weight.device)]
    _assign(block, block.down, "weight", oriented(block.down, down_weight))
    _set_width(block, len(keep))


@torch.no_grad()
def pad_neurons(block: MLPBlock, width: int) -> None:
    """Add neurons with zero weights until the MLP has `width` of them; its output stays.

    Args:
        block: changed in place.
        width: at least its present width.
    """
    extra = width - block.width
    halves = 2 if block.fused else 1
    for module in block.inputs:
        weight = oriented(module, module.weight)
        parts = [pad(part, (0, 0, 0, extra)) for part in weight.chunk(halves)]
        _assign(block, module, "weight", oriented(module, torch.cat(parts)))
        if module.bias is not None:
            parts = [pad(part, (0, extra)) for part in module.bias.chunk(halves)]
            _assign(block, module, "bias", torch.cat(parts))
        set_out_size(module, halves * width)
    weight = oriented(block.down, block.down.weight)
    _assign(block, block.down, "weight", oriented(block.down, pad(weight, (0, extra))))
    _set_width(block, width)


def _set_width(block: MLPBlock, width: int) -> None:
    set_in_size(block.down, width)
    # Some modelling code keeps the width as a plain attribute as well.
    if isinstance(getattr(block.mlp, "intermediate_size", None), int):
        block.mlp.intermediate_size = width


@torch.no_grad()
def set_down_bias(block: MLPBlock, bias: Tensor) -> None:
    """Make `bias`, (hidden,), what the down projection adds to the output.

    Stock modelling code has one switch for the biases of all projections, so gate and up get zeros
    where they have none.
    """
    _assign(block, block.down, "bias", bias)
    for module in block.inputs:
        if module.bias is None:
            _assign(block, module, "bias", module.weight.new_zeros(out_size(module)))


@torch.no_grad()
def set_down(block: MLPBlock, weight: Tensor) -> None:
    """Give an MLP another down projection of its width, (hidden, width)."""
    _assign(block, block.down, "weight", oriented(block.down, weight))


@torch.no_grad()
def set_projections(block: MLPBlock, weights: Sequence[Tensor]) -> None:
    """Give an MLP other weights of its width, (out, in) for each of its projections."""
    for module, weight in zip(block.projections, weights, strict=True):
        _assign(block, module, "weight", oriented(module, weight))


def _assign(block: MLPBlock, module: nn.Module, name: str, value: Tensor) -> None:
    weight = module.weight
    value = value.detach().to(device=weight.device, dtype=weight.dtype)
    check_finite(value, f"layer {block.index}: the pruned and repaired weights of {block.name}")
    setattr(
        module,
        name,
        # contiguous copy: a view would keep the whole old matrix alive
        nn.Parameter(value.contiguous().clone(), requires_grad=weight.requires_grad),
    )
