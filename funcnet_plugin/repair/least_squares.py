"""Moves what the cut pieces carried onto those that are kept, by least squares."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.moments import damping
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.enough import too_little_text
from funcnet_plugin.repair.repair import Cut, Repair, Repaired, cut_columns


class LeastSquares(Repair):
    """Fits the down projection of the kept neurons to the output of all, layer by layer.

    :param ridge: regularisation, relative to the mean second moment.
    """

    name = "least_squares"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    ridge: float = Field(default=0.02, gt=0.0)

    def repaired(self, cut: Cut) -> Repaired:
        weight = cut.unit.output_weight
        second = cut.moments.second.to(weight.device)  # they may have waited on the CPU
        return Repaired(least_squares(weight, second, cut.columns, self.ridge))

    def working_bytes(self, unit: Unit, kept: int) -> int:
        columns, cut = unit.n_columns, unit.n_columns - kept
        # all moments; those of what is kept, their rows, factor and copies; the solution
        square = columns**2 + kept * columns + 3 * kept**2 + 2 * kept * cut
        return 8 * (square + 2 * unit.hidden_size * columns)

    def operations(self, unit: Unit, kept: int, tokens: int) -> float:
        cut = unit.n_columns - kept
        return kept**3 / 3 + 2.0 * kept**2 * cut + 2.0 * unit.hidden_size * kept * cut

    def too_little(self, tokens: int, width: int, samples: int) -> str | None:
        return too_little_text(tokens, width)


@hookimpl
def funcnet_repairs() -> list[type[Repair]]:
    return [LeastSquares]


def least_squares(weight: Tensor, second: Tensor, keep: Tensor, ridge: float) -> Tensor:
    """Solve for the output projection of the kept pieces that best reproduces the old output.

    Delta form: ``W_K + W_P S_PK (S_KK + lambda I)^-1``, lambda = ridge * mean(diag S). Only the
    cut pieces' share is estimated, so lambda shrinks towards the plain cut (not towards zero),
    and cutting nothing changes nothing.

    Args:
        weight: (hidden, width), the original weight.
        second: (width, width), float64, E[h h'].
        keep: (n_kept,), int64, of the columns.
        ridge: relative regularisation, > 0.

    Returns:
        (hidden, n_kept), float64.
    """
    keep = keep.to(second.device)
    pruned = cut_columns(keep, second.shape[0])
    W = weight.to(second.device).double()
    S_KK = second[keep][:, keep]
    S_KK.diagonal().add_(damping(second, ridge))
    solved = torch.cholesky_solve(second[keep][:, pruned], torch.linalg.cholesky(S_KK))
    return W[:, keep] + W[:, pruned] @ solved.T
