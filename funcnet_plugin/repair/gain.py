"""Measures what a layer multiplies its MLP's output with before adding it to the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.layer_calls import layer_calls
from funcnet_plugin.measure.passes import model_inputs

# How far an MLP's share of its layer's output may be from a multiple of what the MLP gives.
_LINEAR = 0.1


@torch.no_grad()
def residual_gain(
    model: nn.Module, units: Sequence[Unit], batch: Mapping[str, Tensor]
) -> float | None:
    """Measure by what a decoder layer multiplies its MLP's output before adding it to the stream.

    Args:
        units: of all layers, in order; the first is asked.
        batch: some text.

    Returns:
        1.0 in most architectures; None where the output is not just added: behind a norm, a change
        of the down projection is not the same change of the residual stream.
    """
    ids, mask, _ = next(model_inputs(model, [batch]))
    calls, hidden = layer_calls(model, units, ids, mask)
    unit = units[0]
    output = calls[0].run(unit, hidden)
    check_finite(
        output[mask.bool().to(output.device)],
        f"layer {unit.index}: the hidden states behind the layer",
    )
    output = output.float()
    generator = torch.Generator().manual_seed(0)
    shape = (*output.shape[:-1], unit.hidden_size)
    # as large as the stream, so that rounding in half precision is small beside it
    change = torch.randn(shape, generator=generator).to(output) * output.square().mean().sqrt()

    def effect(size: float) -> Tensor:
        hook = unit.output.register_forward_hook(
            lambda module, args, y: y + (size * change).to(y).reshape(y.shape)
        )
        with hooked([hook]):
            return calls[0].run(unit, hidden).float() - output

    gain = float((effect(1.0) * change).sum() / change.square().sum())
    expected = 2.0 * gain * change
    off = (effect(2.0) - expected).norm() / expected.norm().clamp_min(1e-12)
    return gain if float(off) < _LINEAR else None
