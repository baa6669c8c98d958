"""Cutting neurons out of an MLP, in place.

The module objects stay: other modifiers key their tables by them, and a new Linear would be left
out of a quantization that follows. Parameters are assigned, never written through ``.data``: an
offload cache (CPU or disk) sees assignments only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.pruning.compensation import Moments, bias_repair, least_squares_repair


@torch.no_grad()
def cut_and_repair(
    block: MLPBlock, keep: Tensor, compensation: str, moments: Moments | None, ridge: float
) -> None:
    """Cut an MLP down to `keep` and repair its output.

    Args:
        block: changed in place.
        keep: (n_kept,), int64, ascending.
        compensation: "none", "bias" or "least_squares".
        moments: of the uncut MLP's inner activations; None for "none".
        ridge: see `least_squares_repair`.
    """
    weight = block.down.weight
    keep = keep.to(weight.device)
    if compensation == "bias":
        bias = bias_repair(weight, moments.mean, keep)
        cut_neurons(block, keep)
        add_down_bias(block, bias)
    elif compensation == "least_squares":
        repaired = least_squares_repair(weight, moments.second, keep, ridge)
        cut_neurons(block, keep, repaired)
    else:
        cut_neurons(block, keep)


@torch.no_grad()
def cut_neurons(block: MLPBlock, keep: Tensor, down_weight: Tensor | None = None) -> None:
    """Keep only the neurons `keep` of one MLP.

    Args:
        block: its modules are changed in place; dtype, device, offloading and requires_grad stay.
        keep: (n_kept,), int64, ascending.
        down_weight: (hidden, n_kept), any floating dtype; a repaired down projection, instead of
            the kept columns of the old one.
    """
    for linear in (block.gate, block.up):
        _assign(linear, "weight", linear.weight[keep.to(linear.weight.device)])
        if linear.bias is not None:
            _assign(linear, "bias", linear.bias[keep.to(linear.bias.device)])
        linear.out_features = len(keep)
    if down_weight is None:
        down_weight = block.down.weight[:, keep.to(block.down.weight.device)]
    _assign(block.down, "weight", down_weight)
    block.down.in_features = len(keep)
    # Some modelling code keeps the width as a plain attribute as well.
    if isinstance(getattr(block.mlp, "intermediate_size", None), int):
        block.mlp.intermediate_size = len(keep)


@torch.no_grad()
def pad_neurons(block: MLPBlock, width: int) -> None:
    """Add neurons with zero weights until the MLP has `width` of them; its output stays.

    Args:
        block: changed in place.
        width: at least its present width.
    """
    extra = width - block.width
    for linear in (block.gate, block.up):
        _assign(linear, "weight", pad(linear.weight, (0, 0, 0, extra)))
        if linear.bias is not None:
            _assign(linear, "bias", pad(linear.bias, (0, extra)))
        linear.out_features = width
    _assign(block.down, "weight", pad(block.down.weight, (0, extra)))
    block.down.in_features = width
    if isinstance(getattr(block.mlp, "intermediate_size", None), int):
        block.mlp.intermediate_size = width


@torch.no_grad()
def add_down_bias(block: MLPBlock, bias: Tensor) -> None:
    """Add `bias`, (hidden,), to the output of the MLP.

    Stock modelling code has one switch for the biases of all three projections, so gate and up get
    zeros where they have none.
    """
    old = block.down.bias
    _assign(block.down, "bias", bias if old is None else old + bias.to(old))
    for linear in (block.gate, block.up):
        if linear.bias is None:
            _assign(linear, "bias", linear.weight.new_zeros(linear.out_features))


def _assign(linear: nn.Linear, name: str, value: Tensor) -> None:
    weight = linear.weight
    value = value.detach().to(device=weight.device, dtype=weight.dtype)
    setattr(
        linear,
        name,
        # contiguous copy: a view would keep the whole old matrix alive
        nn.Parameter(value.contiguous().clone(), requires_grad=weight.requires_grad),
    )
