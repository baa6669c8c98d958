"""Orders groups of columns by what the output loses without them, the others repaired."""

from __future__ import annotations

import torch
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar
from funcnet_plugin.measure.moments import damping

RIDGE = 0.02  # as in the repair


def eliminate_groups(unit: Unit, second: Tensor) -> tuple[Tensor, Tensor]:
    """Eliminate pieces greedily, the columns of the others updated by least squares after each.

    Always the piece goes whose removal, after the best update, changes the output least:
    ``tr(W_g [A_gg]^-1 W_g')`` with A the inverse second moment of what is left. That is
    `elimination.eliminate` for pieces of several columns (ZipLM, arXiv 2302.04089). What went so
    far costs what least squares of all at once would leave.

    Args:
        unit: whose pieces own several columns each.
        second: (n_columns, n_columns), float64, of what enters the output projection; `RIDGE` of
            its mean diagonal is added.

    Returns:
        score, cost: the step at which each piece went, (width,), the last one for what stays; the
            mean squared error of the output once 0 .. width - 1 pieces went, (width,), float64.
    """
    weight = unit.output_weight.detach().double().clone()
    S = second.to(weight.device).clone()
    S.diagonal().add_(damping(S, RIDGE))
    A = torch.cholesky_inverse(torch.linalg.cholesky(S))
    columns = [unit.columns_of(torch.tensor([g], device=A.device)) for g in range(unit.width)]
    left = list(range(unit.width))
    score = torch.full((unit.width,), float(unit.width - 1), dtype=torch.float64)
    cost = torch.zeros(unit.width, dtype=torch.float64)
    for step in bar(range(unit.width - 1), "eliminating heads", within=True):
        losses = [_loss(weight, A, columns[g]) for g in left]
        least = min(range(len(left)), key=losses.__getitem__)
        went = left.pop(least)
        score[went] = step
        cost[step + 1] = cost[step] + losses[least]
        c = columns[went]
        rows = torch.linalg.solve(A[c][:, c], A[c])  # (own columns, n_columns)
        weight -= weight[:, c] @ rows
        A -= A[:, c] @ rows
    return score, cost


def cost_by_effect(unit: Unit, second: Tensor, effect: Tensor) -> Tensor:
    """Compute what the output loses with the columns of least effect cut and the others repaired.

    With the columns in order and ``S = L L'``, the error that least squares of the first k leave is
    the squared norm of ``(W L)``'s other columns: one factor serves every k.

    Args:
        unit: whose pieces own one column each.
        second: (width, width), float64; `RIDGE` of its mean diagonal is added.
        effect: (width,), see `single.Effect`.

    Returns:
        mean squared error of the output with the best 0 .. width kept, (width + 1,), float64.
    """
    weight = unit.output_weight.detach().double()
    S = second.to(weight.device)
    order = effect.to(weight.device).sort(descending=True).indices
    S = S[order][:, order]
    S.diagonal().add_(damping(S, RIDGE))
    each = (weight[:, order] @ torch.linalg.cholesky(S)).square().sum(0)
    nothing = each.new_zeros(1)
    return torch.cat([each.flip(0).cumsum(0).flip(0), nothing])


def _loss(weight: Tensor, A: Tensor, columns: Tensor) -> float:
    own = weight[:, columns]
    return float((own.T * torch.linalg.solve(A[columns][:, columns], own.T)).sum())
