"""Cuts pieces out of a unit, in place.

The module objects stay: other modifiers key their tables by them, and a new Linear would be left
out of a quantization that follows. Parameters are assigned, never written through ``.data``: an
offload cache (CPU or disk) sees assignments only. Several processes share one offloaded copy, so
a repair adds to a weight before the sizes change, for which all processes meet, and never to what
stands there by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.projection import oriented, out_size
from funcnet_plugin.measure.finite import check_finite


@torch.no_grad()
def cut(unit: Unit, keep: Tensor, output_weight: Tensor | None = None) -> None:
    """Keep only some pieces of a unit.

    Args:
        unit: its modules are changed in place; dtype, device, offloading and requires_grad stay.
        keep: (n_kept,), int64, ascending.
        output_weight: (hidden, columns of the kept pieces), any floating dtype; a repaired output
            projection, instead of the kept columns of the old one.
    """
    if output_weight is None:
        weight = unit.output_weight
        output_weight = weight[:, unit.columns_of(keep.to(weight.device))]
    for module in unit.inputs:
        weight = oriented(module, module.weight)
        rows = unit.rows_of(keep.to(weight.device), module)
        _assign(unit, module, "weight", oriented(module, weight[rows]))
        if module.bias is not None:
            _assign(unit, module, "bias", module.bias[rows.to(module.bias.device)])
    _assign(unit, unit.output, "weight", oriented(unit.output, output_weight))
    unit.resize(len(keep))


@torch.no_grad()
def pad_with_zeros(unit: Unit, width: int) -> None:
    """Add pieces with zero weights until a unit has `width` of them; its output stays.

    Args:
        unit: changed in place.
        width: at least its present width.
    """
    extra = width - unit.width
    for module in unit.inputs:
        weight = oriented(module, module.weight)
        # a fused projection holds the rows of all gates first: each part grows by itself
        parts = len(weight) // unit.width
        padded = [pad(part, (0, 0, 0, extra)) for part in weight.chunk(parts)]
        _assign(unit, module, "weight", oriented(module, torch.cat(padded)))
        if module.bias is not None:
            padded = [pad(part, (0, extra)) for part in module.bias.chunk(parts)]
            _assign(unit, module, "bias", torch.cat(padded))
    weight = pad(unit.output_weight, (0, extra))
    _assign(unit, unit.output, "weight", oriented(unit.output, weight))
    unit.resize(width)


@torch.no_grad()
def set_output_bias(unit: Unit, bias: Tensor) -> None:
    """Make `bias`, (hidden,), what the output projection adds.

    Stock modelling code has one switch for the biases of all projections, so the inputs get zeros
    where they have none.
    """
    _assign(unit, unit.output, "bias", bias)
    for module in unit.inputs:
        if module.bias is None:
            _assign(unit, module, "bias", module.weight.new_zeros(out_size(module)))


def complete_biases(units: Sequence[Unit]) -> None:
    """Give units that were left whole a bias of zeros: configs have one switch for all."""
    for unit in units:
        if unit.output.bias is None:
            set_output_bias(unit, torch.zeros(unit.hidden_size))


def assign_weight(module: nn.Module, value: Tensor, what: str, name: str = "weight") -> None:
    """Give a module another parameter, in the dtype and on the device of its weight.

    Args:
        module: a projection.
        value: as the module stores it.
        what: the value is, for a message.
        name: of the parameter.

    Raises:
        NumbersError: the value is not finite, in that dtype.
    """
    weight = module.weight
    value = value.detach().to(device=weight.device, dtype=weight.dtype)
    check_finite(value, what)
    # contiguous copy: a view would keep the whole old matrix alive
    parameter = nn.Parameter(value.contiguous().clone(), requires_grad=weight.requires_grad)
    setattr(module, name, parameter)


def _assign(unit: Unit, module: nn.Module, name: str, value: Tensor) -> None:
    what = f"layer {unit.index}: the pruned and repaired weights of {unit.name}"
    assign_weight(module, value, what, name)
