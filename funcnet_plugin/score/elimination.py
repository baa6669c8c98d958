"""Scores to second order, by what a removal costs the output or the loss, alone or in steps."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar
from funcnet_plugin.measure.moments import damping
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.score.scorer import Evidence, Scorer, Setting

_AT_ONCE = 64  # eliminations between two updates of whole matrices


class _Eliminating(Scorer):
    """Serves as the base of scorers that eliminate."""

    def working_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        columns = unit.n_columns
        # moments, their damped copy, its factor and inverse, and what LAPACK copies
        return 6 * 8 * columns**2 + 2 * 8 * unit.hidden_size * columns

    def operations(self, unit: Unit, workload: Workload) -> float:
        return 10.0 * unit.n_columns**3


class OBS(_Eliminating):
    """Orders neurons by greedy second-order elimination of what the output loses.

    Always the neuron goes whose removal, after the best update of the others, changes the output
    least, ``|w_j|^2 / [S^-1]_jj`` (optimal brain surgeon for columns, as in ZipLM and SlimGPT), S
    being the second moment of the activations. The score is the step at which a neuron went.
    """

    name = "obs"
    source = "Kurtic et al. 2023, arXiv 2302.04089"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    def score(self, evidence: Evidence) -> Tensor:
        weight = evidence.unit.output_weight.detach().double()
        order, cost = eliminate(weight, evidence.moments.second)
        # where nothing costs anything there is no order either: a layer that was never active
        return order if float(cost.amax()) > 0.0 else cost


class LossEffect(Scorer):
    """Scores a neuron by its own effect on the loss, to second order.

    ``E[h_j^2] w_j' E[g g'] w_j`` is the diagonal of the K-FAC approximation of the Fisher
    information. It is in units of the loss, so layers compare.
    """

    name = "loss_effect"
    source = "diagonal K-FAC, Martens and Grosse 2015, arXiv 1503.05671"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "output_gradients"})

    def score(self, evidence: Evidence) -> Tensor:
        weight = _in_loss_units(evidence)
        second = evidence.moments.second.diagonal().to(weight.device)
        return evidence.unit.by_piece(second * weight.square().sum(0))


class Surgeon(_Eliminating):
    """Orders neurons by greedy elimination in the K-FAC metric of the loss.

    It is LLM Surgeon in one shot, neurons only: ``w_j' E[g g'] w_j / [S^-1]_jj``. The score is what
    a removal cost, never less than the one before it, so layers compare.
    """

    name = "surgeon"
    source = "van der Ouderaa et al. 2024, arXiv 2312.17244"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "output_gradients"})

    def score(self, evidence: Evidence) -> Tensor:
        _, cost = eliminate(_in_loss_units(evidence), evidence.moments.second)
        return cost


@hookimpl
def funcnet_scorers() -> list[type[Scorer]]:
    return [OBS, LossEffect, Surgeon]


def _in_loss_units(evidence: Evidence) -> Tensor:
    """Give ``E[g g']^(1/2) W``, (hidden, width), float64, W being the output weight."""
    weight = evidence.unit.output_weight.detach().double()
    values, axes = torch.linalg.eigh(evidence.output_gradients.to(weight.device))
    return values.clamp_min(0.0).sqrt()[:, None] * (axes.T @ weight)


def eliminate(weight: Tensor, second: Tensor, ridge: float = 0.02) -> tuple[Tensor, Tensor]:
    """Eliminate columns greedily, the others updated by least squares after each.

    With A the inverse second moment of what is left and H = W'W of the updated weights, removing
    column j at cost ``H_jj / A_jj`` takes ``c = A_:j / A_jj`` with it: A loses ``A_jj c c'``, and W
    loses ``w_j c'``. What a step needs of both is their diagonals and one column, so the updates of
    `_AT_ONCE` steps wait for one matrix product: 2 * width^2 * 8 bytes, about 4 * width^3
    multiplications. The host never asks which column went, so a GPU need not wait for it.

    Args:
        weight: (out, width), float64.
        second: (width, width), float64; `ridge` of its mean diagonal is added.

    Returns:
        per column (width,), float64: the step at which it went, and the largest cost up to then.
    """
    S = second.to(weight.device).clone()
    S.diagonal().add_(damping(S, ridge))
    A = torch.cholesky_inverse(torch.linalg.cholesky(S))
    del S
    H = weight.T @ weight
    n = len(A)
    A_diagonal, H_diagonal = A.diagonal().clone(), H.diagonal().clone()
    order = torch.empty(n, dtype=torch.float64, device=weight.device)
    cost = torch.empty_like(order)
    removed = torch.zeros_like(cost)  # infinite for a column that went
    highest = torch.zeros(1, dtype=torch.float64, device=weight.device)
    for start in bar(range(0, n, _AT_ONCE), "eliminating neurons", within=True):
        steps = min(_AT_ONCE, n - start)
        # A is A - C' diag(a) C by now, and H is H - C'U - U'C
        C = torch.zeros(steps, n, dtype=torch.float64, device=weight.device)
        U, a = torch.zeros_like(C), torch.zeros_like(C[:, 0])
        for i in range(steps):
            loss = H_diagonal.clamp_min(0.0) / A_diagonal.clamp_min(1e-300) + removed
            least, j = loss.min(0, keepdim=True)
            highest = torch.maximum(highest, least)
            removed.index_fill_(0, j, torch.inf)
            order.index_fill_(0, j, start + i)
            cost.index_copy_(0, j, highest)
            C_j, U_j = C.index_select(1, j)[:, 0], U.index_select(1, j)[:, 0]
            A_column = A.index_select(0, j)[0] - (a * C_j) @ C
            H_column = H.index_select(0, j)[0] - C_j @ U - U_j @ C
            a[i : i + 1] = A_column.index_select(0, j)
            C[i] = A_column / a[i]
            U[i] = H_column - 0.5 * H_column.index_select(0, j) * C[i]
            A_diagonal -= a[i] * C[i].square()
            H_diagonal -= 2.0 * C[i] * U[i]
        A -= C.T @ (a[:, None] * C)
        H -= C.T @ U + U.T @ C
        A_diagonal, H_diagonal = A.diagonal().clone(), H.diagonal().clone()
    return order, cost
