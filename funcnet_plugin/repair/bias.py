"""Adds the mean of what was cut, as a bias."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.repair import Cut, Repair, Repaired, cut_columns


class Bias(Repair):
    """Adds what the cut neurons gave on average; only where the architecture has a bias there."""

    name = "bias"
    source = "An et al. 2024, arXiv 2312.11983"
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    adds_bias: ClassVar[bool] = True

    def repaired(self, cut: Cut) -> Repaired:
        bias = mean_of_cut(cut.unit.output_weight, cut.moments.mean, cut.columns)
        if cut.unit.output.bias is not None:
            bias = bias + cut.unit.output.bias.to(bias)
        return Repaired(bias=bias)


@hookimpl
def funcnet_repairs() -> list[type[Repair]]:
    return [Bias]


def mean_of_cut(weight: Tensor, mean: Tensor, keep: Tensor) -> Tensor:
    """Compute what the cut pieces added to the output on average.

    Args:
        weight: (hidden, width), of the output projection, original.
        mean: (width,), E[h].
        keep: (n_kept,), int64, of the columns.

    Returns:
        (hidden,), float64.
    """
    pruned = cut_columns(keep, weight.shape[1])
    # the mean waited on the CPU; `keep` may be on the weights' device
    return weight[:, pruned].double() @ mean.to(weight.device)[pruned]
