"""Fits MLPs to the dense model's hidden states, one behind the other."""

from __future__ import annotations

from typing import ClassVar

import torch
from loguru import logger
from pydantic import Field

from funcnet_plugin.adapters import Unit
from funcnet_plugin.cut.surgery import set_output_weight, set_weights
from funcnet_plugin.measure.workload import Bytes
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.enough import too_little_text
from funcnet_plugin.repair.fit import Examples, fit_bytes, fit_weights
from funcnet_plugin.repair.least_squares import LeastSquares
from funcnet_plugin.repair.pruned_layer import PrunedLayer
from funcnet_plugin.repair.repair import Repair
from funcnet_plugin.repair.residual import ResidualFit

# Tokens that a reconstruction reads, drawn from all: a layer's inputs and targets wait in memory.
_MOST_TOKENS = 2**18


class Reconstruction(LeastSquares):
    """Fits every cut MLP so that its layer gives what the dense model has there.

    A unit is first repaired as by `least_squares`. Behind the pruned layers before it, its down
    projection is then refitted to what the residual stream lacks; and gate, up and down projection
    are fitted together by gradient steps. The whole model is never trained.

    :param epochs: how often the gradient steps go over the text; 0 leaves them out, so that only
        down projections change.
    :param continuations: windows that the model writes for every calibration sample, going on from
        16 of its tokens: more text of the same kind, for this repair alone. For little calibration
        text, which the fit would learn by heart.
    :param ridge: regularisation of the least squares, relative to the mean second moment.
    """

    name = "reconstruction"
    source = "after BRECQ, Li et al. 2021, arXiv 2102.05426"
    behind_pruned_layers: ClassVar[bool] = True

    epochs: int = Field(default=5, ge=0)
    continuations: int = Field(default=0, ge=0)

    @property
    def windows_to_write(self) -> int:
        return self.continuations

    def refit(self, layer: PrunedLayer) -> dict[str, float]:
        self._fit_output(layer)
        return self._fit_all(layer) if self.epochs else {}

    def refit_bytes(self, unit: Unit, kept: int, tokens: int) -> Bytes:
        hidden, itemsize = unit.hidden_size, unit.dtype.itemsize
        solving = 8 * (5 * kept**2 + 3 * hidden * kept)
        if not self.epochs:
            return Bytes(device=solving)
        read = min(tokens, _MOST_TOKENS)
        weights = unit.parameters * kept // unit.n_columns
        examples = 2 * 2 * read * hidden * itemsize  # inputs and targets, in pieces and joined
        return Bytes(device=max(solving, fit_bytes(weights, kept, hidden)), host=examples)

    def operations(self, unit: Unit, kept: int, tokens: int) -> float:
        read = min(tokens, _MOST_TOKENS)
        weights = unit.parameters * kept / unit.n_columns
        solving = kept**3 / 3 + 2.0 * kept**2 * unit.hidden_size + 2.0 * tokens * kept**2
        fitting = self.epochs * read * 6.0 * weights
        return super().operations(unit, kept, tokens) + solving + fitting

    def too_little(self, tokens: int, width: int, samples: int) -> str | None:
        return too_little_text(tokens, width, samples)

    def _fit_output(self, layer: PrunedLayer) -> None:
        # before `merge`, by which all processes have read it: they share one offloaded copy
        weight = layer.unit.output_weight.to(torch.float64, copy=True)
        fit = ResidualFit(*reversed(weight.shape), layer.gain, weight.device)
        for missing, of_token in layer.missing():
            fit.add(missing.h, missing.error, of_token)
        if layer.processes is not None:
            fit.merge(layer.processes)
        set_output_weight(layer.unit, weight + fit.change(self.ridge))

    def _fit_all(self, layer: PrunedLayer) -> dict[str, float]:
        unit, n_tokens = layer.unit, layer.n_tokens
        generator = torch.Generator().manual_seed(layer.seed)
        weights = unit.weights
        examples = []
        for missing, of_token in layer.missing():
            drawn = torch.rand(len(missing.sample), generator=generator) * n_tokens < _MOST_TOKENS
            x, error = (t[drawn.to(t.device)] for t in (missing.x, missing.error))
            # as precise as the stream that it is added to
            target = (unit.compute(weights, x) + error / layer.gain).to(x.dtype)
            examples.append(Examples(x.cpu(), target.cpu(), missing.sample[drawn], of_token))
        fit = fit_weights(
            unit, examples, epochs=self.epochs, seed=layer.seed, processes=layer.processes
        )
        set_weights(unit, fit.weights)
        logger.info(
            f"layer {unit.index}: reconstructed, error on held-out samples "
            f"{fit.error_before:.4f} -> {fit.error:.4f} of the target"
        )
        return {"error": fit.error, "error_before_reconstruction": fit.error_before}


@hookimpl
def funcnet_repairs() -> list[type[Repair]]:
    return [Reconstruction]
