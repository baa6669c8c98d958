"""Scores single neurons: the peers of functional networks, and the controls."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.score.scorer import Evidence, Scorer, Setting


class Effect(Scorer):
    """Scores a neuron by its own effect on the output (WIFV of FLAP).

    That is the variance of its activation times the squared norm of its column of the down
    projection.
    """

    name = "effect"
    source = "FLAP's WIFV, arXiv 2312.11983"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    def score(self, evidence: Evidence) -> Tensor:
        norm = _squares(evidence.unit.output).sum(0)
        return evidence.unit.by_piece(evidence.moments.variance.to(norm.device) * norm)


class Flap(Effect):
    """Standardises `effect` within the layer, as FLAP compares layers.

    The published method has `allocation: threshold` and `repair: bias` with it.
    """

    name = "flap"
    source = "An et al. 2024, arXiv 2312.11983"

    def score(self, evidence: Evidence) -> Tensor:
        score = super().score(evidence)
        return (score - score.mean()) / score.std().clamp_min(torch.finfo(score.dtype).tiny)


class WandaSP(Scorer):
    """Averages ``|W_ij| ||h_j||`` over the outputs: Wanda's metric of the down projection.

    Gathered per neuron it is the structured baseline of the FLAP paper.
    """

    name = "wanda_sp"
    source = "Sun et al. 2024, arXiv 2306.11695"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    def score(self, evidence: Evidence) -> Tensor:
        weight = evidence.unit.output_weight.detach().double()
        norm = (evidence.moments.second.diagonal() * evidence.moments.count).sqrt()
        return evidence.unit.by_piece(weight.abs().mean(0) * norm.to(weight.device))


class Taylor(Scorer):
    """Adds up ``|w dL/dw|`` over all weights of a neuron.

    It is LLM-Pruner's element-wise first order, gathered over the channel.
    """

    name = "taylor"
    source = "Ma et al. 2023, arXiv 2305.11627"
    needs: ClassVar[frozenset[str]] = frozenset({"weight_gradients"})

    def score(self, evidence: Evidence) -> Tensor:
        unit = evidence.unit
        *rows, columns = (
            (weight.detach().double() * gradient.to(weight.device).double()).abs()
            for weight, gradient in zip(unit.weights, evidence.weight_gradients, strict=True)
        )
        return unit.by_piece(columns.sum(0), [product.sum(1) for product in rows])

    def working_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        return 3 * 8 * unit.parameters  # weights and gradients in float64, and their products


class Magnitude(Scorer):
    """Takes the norm of all weights of a neuron, without calibration data. A control."""

    name = "magnitude"

    def score(self, evidence: Evidence) -> Tensor:
        return _norms(evidence.unit).sqrt()


class Random(Scorer):
    """Draws uniform numbers, different in every layer. The control that each score must beat."""

    name = "random"

    def score(self, evidence: Evidence) -> Tensor:
        rng = np.random.default_rng([evidence.seed, evidence.unit.index])
        return torch.from_numpy(rng.random(evidence.unit.width))


@hookimpl
def funcnet_scorers() -> list[type[Scorer]]:
    return [Effect, Flap, WandaSP, Taylor, Magnitude, Random]


def _norms(unit: Unit) -> Tensor:
    """Add up the squared weights of each neuron, (width,), float64."""
    rows = [_squares(module).sum(1) for module in unit.inputs]
    return unit.by_piece(_squares(unit.output).sum(0), rows)


def _squares(module: nn.Module) -> Tensor:
    """Square a module's weights, (out, in), float64."""
    return oriented(module, module.weight.detach()).double().square()
