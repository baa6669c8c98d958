"""Importance of single neurons: the peers of functional networks, and the controls.

A scorer is a name, what it must be given, and a function of one layer; larger is more important.
The same surgery, budget and compensation serve all of them. Plugins bring more through the hook
`funcnet_scorers` (see `adapters.hookspecs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.adapters.manager import get_manager
from funcnet_plugin.adapters.projection import oriented
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.pruning.compensation import Moments
from funcnet_plugin.pruning.score_checks import all_alike

_AT_ONCE = 64  # eliminations between two updates of whole matrices


@dataclass(frozen=True)
class LossGradients:
    """Of the next-token loss over the calibration data, for one layer; None unless asked for.

    Attributes:
        weights: of each of `block.projections`' weights, (out, in), mean over predicted tokens.
        output_second: (hidden, hidden), float64: E[g g'], g the gradient of the summed loss by the
            MLP's output at one token: how much the loss bends in which direction of the output (the
            gradient side of K-FAC, arXiv 1503.05671). Labels are the text's, or drawn from the
            model, as the recipe's `fisher_labels` says.
    """

    weights: tuple[Tensor, ...] | None = None
    output_second: Tensor | None = None


@dataclass(frozen=True)
class LayerEvidence:
    """What a scorer may look at.

    Attributes:
        block: the uncut MLP.
        moments: of its inner activations over the calibration tokens; None unless asked for.
        gradients: None unless asked for.
        seed: of the recipe.
    """

    block: MLPBlock
    moments: Moments | None
    gradients: LossGradients | None
    seed: int


@dataclass(frozen=True)
class Scorer:
    """Attributes:
    name: `scorer:` in a recipe.
    score: layer -> (width,), float64, any device; larger is more important.
    source: the paper, for the documentation.
    needs_moments: see `LayerEvidence`.
    needs_gradients, needs_output_gradients: the parts of `LossGradients`. They cost a backward pass
        over the whole model before calibration, in memory.
    """

    name: str
    score: Callable[[LayerEvidence], Tensor]
    source: str = ""
    needs_moments: bool = False
    needs_gradients: bool = False
    needs_output_gradients: bool = False


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
        (
            oriented(module, module.weight.detach()).double() * gradient.to(module.weight).double()
        ).abs()
        for module, gradient in zip(block.projections, evidence.gradients.weights, strict=True)
    ]
    rows = sum(product.sum(1) for product in products[:-1])
    if block.fused:
        rows = rows.unflatten(0, (2, block.width)).sum(0)
    return rows + products[-1].sum(0)


def obs(evidence: LayerEvidence) -> Tensor:
    """Order of greedy second-order elimination: always the neuron whose removal, after the best
    update of the others, changes the output least, ``|w_j|^2 / [S^-1]_jj`` (optimal brain surgeon
    for columns, as in ZipLM and SlimGPT). The score is the step at which a neuron went.

    S is the second moment of the activations.
    """
    weight = oriented(evidence.block.down, evidence.block.down.weight.detach()).double()
    order, cost = _eliminate(weight, evidence.moments.second)
    # where nothing costs anything there is no order either: a layer that was never active
    return order if float(cost.amax()) > 0.0 else cost


def loss_effect(evidence: LayerEvidence) -> Tensor:
    """A neuron's own effect on the loss, to second order: ``E[h_j^2] w_j' E[g g'] w_j``, the
    diagonal of the K-FAC approximation of the Fisher information. It is in units of the loss, so
    layers compare."""
    weight = _in_loss_units(evidence)
    return evidence.moments.second.diagonal().to(weight.device) * weight.square().sum(0)


def surgeon(evidence: LayerEvidence) -> Tensor:
    """Greedy elimination as `obs`, in the K-FAC metric of the loss (LLM Surgeon, one shot, neurons
    only): ``w_j' E[g g'] w_j / [S^-1]_jj``. The score is what a removal cost, never less than the
    one before it, so layers compare."""
    _, cost = _eliminate(_in_loss_units(evidence), evidence.moments.second)
    return cost


def _in_loss_units(evidence: LayerEvidence) -> Tensor:
    """``E[g g']^(1/2) W_down``, (hidden, width), float64."""
    weight = oriented(evidence.block.down, evidence.block.down.weight.detach()).double()
    values, axes = torch.linalg.eigh(evidence.gradients.output_second.to(weight.device))
    return values.clamp_min(0.0).sqrt()[:, None] * (axes.T @ weight)


def _eliminate(weight: Tensor, second: Tensor, ridge: float = 0.02) -> tuple[Tensor, Tensor]:
    """Greedy elimination of columns, the others updated by least squares after each.

    With A the inverse second moment of what is left and H = W'W of the updated weights, removing
    column j at cost ``H_jj / A_jj`` takes ``c = A_:j / A_jj`` with it: A loses ``A_jj c c'``, and W
    loses ``w_j c'``. What a step needs of both is their diagonals and one column, so the updates of
    `_AT_ONCE` steps wait for one matrix product: 2 * width^2 * 8 bytes, about 4 * width^3
    multiplications.

    Args:
        weight: (out, width), float64.
        second: (width, width), float64; `ridge` of its mean diagonal is added.

    Returns:
        per column (width,), float64: the step at which it went, and the largest cost up to then.
    """
    S = second.to(weight.device).clone()
    S.diagonal().add_(max(ridge * float(S.diagonal().mean()), torch.finfo(S.dtype).tiny))
    A = torch.cholesky_inverse(torch.linalg.cholesky(S))
    del S
    H = weight.T @ weight
    n = len(A)
    A_diagonal, H_diagonal = A.diagonal().clone(), H.diagonal().clone()
    order = torch.empty(n, dtype=torch.float64, device=weight.device)
    cost = torch.empty_like(order)
    removed = torch.zeros(n, dtype=torch.bool, device=weight.device)
    highest = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, n, _AT_ONCE):
        steps = min(_AT_ONCE, n - start)
        # A is A - C' diag(a) C by now, and H is H - C'U - U'C
        C = torch.zeros(steps, n, dtype=torch.float64, device=weight.device)
        U, a = torch.zeros_like(C), torch.zeros_like(C[:, 0])
        for i in range(steps):
            loss = H_diagonal.clamp_min(0.0) / A_diagonal.clamp_min(1e-300)
            j = int(loss.masked_fill_(removed, torch.inf).argmin())
            highest = torch.maximum(highest, loss[j])
            removed[j], order[j], cost[j] = True, start + i, highest
            A_column = A[j] - (a * C[:, j]) @ C
            H_column = H[j] - C[:, j] @ U - U[:, j] @ C
            a[i] = A_column[j]
            C[i] = A_column / A_column[j]
            U[i] = H_column - 0.5 * H_column[j] * C[i]
            A_diagonal -= a[i] * C[i].square()
            H_diagonal -= 2.0 * C[i] * U[i]
        A -= C.T @ (a[:, None] * C)
        H -= C.T @ U + U.T @ C
        A_diagonal, H_diagonal = A.diagonal().clone(), H.diagonal().clone()
    return order, cost


def _squares(module: nn.Module) -> Tensor:
    """(out, in), float64."""
    return oriented(module, module.weight.detach()).double().square()


SCORERS = (
    Scorer("effect", effect, "FLAP's WIFV, arXiv 2312.11983", needs_moments=True),
    Scorer("flap", flap, "An et al. 2024, arXiv 2312.11983", needs_moments=True),
    Scorer("wanda_sp", wanda_sp, "Sun et al. 2024, arXiv 2306.11695", needs_moments=True),
    Scorer("taylor", taylor, "Ma et al. 2023, arXiv 2305.11627", needs_gradients=True),
    Scorer("obs", obs, "Kurtic et al. 2023, arXiv 2302.04089", needs_moments=True),
    Scorer(
        "loss_effect",
        loss_effect,
        "diagonal K-FAC, Martens and Grosse 2015, arXiv 1503.05671",
        needs_moments=True,
        needs_output_gradients=True,
    ),
    Scorer(
        "surgeon",
        surgeon,
        "van der Ouderaa et al. 2024, arXiv 2312.17244",
        needs_moments=True,
        needs_output_gradients=True,
    ),
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
        brought = hook.function()
        for scorer in brought if isinstance(brought, Iterable) else [brought]:
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
        per layer (width_l,), float64, in (0, 1]; 0 where all scores are the same everywhere.
    """
    sizes = [len(layer) for layer in scores[0]]
    best = None
    for layers in scores:
        values = torch.cat([layer.double().cpu() for layer in layers])
        if all_alike(values):
            # it needs none more than another, and ranks by index would keep half of them for it
            best = torch.zeros_like(values) if best is None else best
            continue
        order = torch.sort(values, stable=True).indices
        rank = torch.empty_like(values)
        rank[order] = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
        best = rank if best is None else torch.maximum(best, rank)
    return list(best.split(sizes))
