"""Repairs the residual stream: least squares that also make up for what earlier layers lost.

`least_squares` reproduces the output of one MLP. But the layers before it were cut too, so
the hidden states that reach it are wrong already, and nothing makes up for that. With h the inner
activations of the pruned MLP in the pruned model, and e what the hidden states after its layer lack
of the dense model's, the down projection is changed by

    D = E[e h'] (E[h h'] + lambda I)^-1,   lambda = ridge * mean diag E[h h'],

layer after layer, so each sees what is left of the error of all before it. The target is that of
GPTAQ (Li et al. 2025, arXiv 2504.02692), which corrects rounding with it; here nothing is rounded,
and the least squares are solved at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.layer_calls import layer_calls
from funcnet_plugin.measure.moments import damping
from funcnet_plugin.measure.passes import model_inputs
from funcnet_plugin.measure.processes import Processes

# How far an MLP's share of its layer's output may be from a multiple of what the MLP gives.
_LINEAR = 0.1


class ResidualFit:
    """Adds up what the fit of one layer needs: products float32, sums float64.

    Args:
        width: neurons that were kept.
        hidden: size of the residual stream.
        gain: what a layer multiplies its MLP's output with before adding it to the stream.
    """

    def __init__(
        self, width: int, hidden: int, gain: float = 1.0, device: torch.device | str = "cpu"
    ) -> None:
        self._gain = gain
        self._second = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._cross = torch.zeros(hidden, width, dtype=torch.float64, device=device)

    def add(self, h: Tensor, error: Tensor, weight: float = 1.0) -> None:
        """Take tokens in.

        Args:
            h: (n_tokens, width), any floating dtype.
            error: (n_tokens, hidden), of the residual stream: dense less pruned.
            weight: of each token.
        """
        h, error = h.float(), error.float()
        self._second += weight * (h.T @ h).double()
        self._cross += weight * (error.T @ h).double()

    def merge(self, processes: Processes) -> None:
        """Take the tokens of the other processes in."""
        self._second = processes.sum(self._second)
        self._cross = processes.sum(self._cross)

    def change(self, ridge: float) -> Tensor:
        """Solve for what is added to the down projection, (hidden, width), float64.

        Args:
            ridge: relative regularisation, > 0; shrinks towards no change.
        """
        damped = self._second.clone()
        damped.diagonal().add_(damping(damped, ridge))
        factor = torch.linalg.cholesky(damped)
        return torch.cholesky_solve(self._cross.T, factor).T / self._gain


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
