"""Importance of single neurons: the peers of functional networks, and the controls.

A scorer is a name, what it must be given, and a function of one layer; larger is more important.
The same surgery, budget and compensation serve all of them. Plugins bring more through the hook
`funcnet_scorers` (see `adapters.hookspecs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.manager import get_manager
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.pruning.compensation import Moments


@dataclass(frozen=True)
class LayerEvidence:
    """What a scorer may look at.

    Attributes:
        block: the uncut MLP.
        moments: of its inner activations over the calibration tokens; None unless asked for.
        gradients: the loss's gradient of each of `block.projections`' weights, (out, in), mean over
            the calibration samples; None unless asked for.
        seed: of the recipe.
    """

    block: MLPBlock
    moments: Moments | None
    gradients: tuple[Tensor, ...] | None
    seed: int


@dataclass(frozen=True)
class Scorer:
    """Attributes:
    name: `scorer:` in a recipe.
    score: layer -> (width,), float64, any device; larger is more important.
    source: the paper, for the documentation.
    needs_moments, needs_gradients: see `LayerEvidence`. Gradients cost a backward pass over the
        whole model before calibration, in memory.
    """

    name: str
    score: Callable[[LayerEvidence], Tensor]
    source: str = ""
    needs_moments: bool = False
    needs_gradients: bool = False


def effect(evidence: LayerEvidence) -> Tensor:
    """A neuron's own effect on the output: variance of its activation times the squared norm of
    its column of the down projection (WIFV of FLAP)."""
    norm = _squares(evidence.block.down).sum(0)
    return evidence.moments.variance.to(norm.device) * norm


def flap(evidence: LayerEvidence) -> Tensor:
    """WIFV standardised within the layer, so that one cut over all layers compares layers as FLAP
    does; the published method has `allocation: threshold` and `compensation: bias` with it."""
    score = effect(evidence)
    return (score - score.mean()) / score.std().clamp_min(torch.finfo(score.dtype).tiny)


def wanda_sp(evidence: LayerEvidence) -> Tensor:
    """Mean over the outputs of ``|W_ij| ||h_j||``: Wanda's metric of the down projection, gathered
    per neuron (the structured baseline of the FLAP paper)."""
    weight = oriented(evidence.block.down, evidence.block.down.weight.detach()).double()
    norm = (evidence.moments.second.diagonal() * evidence.moments.count).sqrt()
    return weight.abs().mean(0) * norm.to(weight.device)


def magnitude(evidence: LayerEvidence) -> Tensor:
    """Norm of all weights of a neuron; no calibration data. A control."""
    block = evidence.block
    rows = sum(_squares(module).sum(1) for module in block.inputs)
    if block.fused:
        rows = rows.unflatten(0, (2, block.width)).sum(0)
    return (rows + _squares(block.down).sum(0)).sqrt()


def random(evidence: LayerEvidence) -> Tensor:
    """Uniform numbers, different in every layer. The control that each score must beat."""
    rng = np.random.default_rng([evidence.seed, evidence.block.index])
    return torch.from_numpy(rng.random(evidence.block.width))


def taylor(evidence: LayerEvidence) -> Tensor:
    """Sum of ``|w dL/dw|`` over all weights of a neuron: LLM-Pruner's element-wise first order,
    gathered over the channel."""
    block = evidence.block
    products = [
        (oriented(module, module.weight.detach()).double() * gradient.double()).abs()
        for module, gradient in zip(block.projections, evidence.gradients, strict=True)
    ]
    rows = sum(product.sum(1) for product in products[:-1])
    if block.fused:
        rows = rows.unflatten(0, (2, block.width)).sum(0)
    return rows + products[-1].sum(0)


def obs(evidence: LayerEvidence, ridge: float = 0.02) -> Tensor:
    """Order of greedy second-order elimination: always the neuron whose removal, after the best
    update of the others, changes the output least, ``|w_j|^2 / [S^-1]_jj`` (optimal brain surgeon
    for columns, as in ZipLM and SlimGPT). The score is the step at which a neuron went.

    S is the second moment of the activations, with `ridge` of its mean diagonal added.
    """
    weight = oriented(evidence.block.down, evidence.block.down.weight.detach()).double().clone()
    S = evidence.moments.second.to(weight.device).clone()
    n = len(S)
    S.diagonal().add_(max(ridge * float(S.diagonal().mean()), torch.finfo(S.dtype).tiny))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(S))
    removed = torch.zeros(n, dtype=torch.bool, device=weight.device)
    order = torch.empty(n, dtype=torch.float64, device=weight.device)
    # Of the inverse of what is left, and of the updated weights, only these two are looked at.
    for step in range(n):
        loss = weight.square().sum(0) / inverse.diagonal().clamp_min(1e-300)
        j = int(torch.where(removed, torch.inf, loss).argmin())
        removed[j], order[j] = True, step
        column = inverse[:, j] / inverse[j, j]
        weight -= weight[:, j : j + 1] * column
        inverse -= torch.outer(column, inverse[j].clone())
        weight[:, j] = 0.0
        inverse[:, j] = inverse[j, :] = 0.0
        inverse[j, j] = 1.0
    return order


def _squares(module: nn.Module) -> Tensor:
    """(out, in), float64."""
    return oriented(module, module.weight.detach()).double().square()


SCORERS = (
    Scorer("effect", effect, "FLAP's WIFV, arXiv 2312.11983", needs_moments=True),
    Scorer("flap", flap, "An et al. 2024, arXiv 2312.11983", needs_moments=True),
    Scorer("wanda_sp", wanda_sp, "Sun et al. 2024, arXiv 2306.11695", needs_moments=True),
    Scorer("taylor", taylor, "Ma et al. 2023, arXiv 2305.11627", needs_gradients=True),
    Scorer("obs", obs, "Kurtic et al. 2023, arXiv 2302.04089", needs_moments=True),
    Scorer("magnitude", magnitude),
    Scorer("random", random),
)


def get_scorers() -> dict[str, Scorer]:
    """Name -> scorer: ours and those of plugins.

    Raises:
        RecipeError: two bring the same name, or a plugin brings something else.
    """
    found: dict[str, Scorer] = {scorer.name: scorer for scorer in SCORERS}
    for hook in get_manager().hook.funcnet_scorers.get_hookimpls():
        for scorer in hook.function():
            if not isinstance(scorer, Scorer):
                raise RecipeError(f"{hook.plugin_name} brings {scorer!r}, which is not a Scorer.")
            if scorer.name in found:
                raise RecipeError(
                    f"{hook.plugin_name} brings a scorer called {scorer.name!r}, and there is one "
                    "already; it needs another name."
                )
            found[scorer.name] = scorer
    return found


def union_of_ranks(scores: list[list[Tensor]]) -> list[Tensor]:
    """A neuron goes only if no score needs it: the better of its ranks.

    Args:
        scores: scores[s][l] is score s of layer l, (width_l,). Ranks are taken over all layers
            given, so pass one layer for a decision per layer, all of them for one cut.

    Returns:
        per layer (width_l,), float64, in (0, 1].
    """
    sizes = [len(layer) for layer in scores[0]]
    best = None
    for layers in scores:
        values = torch.cat([layer.double().cpu() for layer in layers])
        order = torch.sort(values, stable=True).indices
        rank = torch.empty_like(values)
        rank[order] = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
        best = rank if best is None else torch.maximum(best, rank)
    return list(best.split(sizes))
