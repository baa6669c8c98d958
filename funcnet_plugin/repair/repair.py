"""Defines what a repair is: a part that makes up for what was cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from funcnet_plugin.adapters import MLPAdapter, Unit
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.plugins import Part, hookspec
from funcnet_plugin.repair.pruned_model import PrunedModel


@hookspec
def funcnet_repairs() -> Iterable[type[Repair]]:
    """Return the repairs that this package brings: classes that derive from `Repair`.

    A plugin is a module with a function of this name, marked with `funcnet_plugin.hookimpl`, and
    named in the entry-point group `funcnet_plugin.repairs` of its package. A name that is taken
    already is refused.
    """


@dataclass(frozen=True)
class Cut:
    """Holds what a repair is told of one unit that is about to be cut.

    Attributes:
        unit: whole yet.
        keep: (n_kept,), int64, ascending, on the device of the weights.
        statistics: what the repair declared, by name.
    """

    unit: Unit
    keep: Tensor
    statistics: Mapping[str, Any]

    @property
    def columns(self) -> Tensor:
        """Give the columns of the output projection that are kept, ascending, int64."""
        return self.unit.columns_of(self.keep)

    @property
    def moments(self) -> Moments:
        """Give the moments of what enters the output projection.

        They are over the calibration tokens, and over the model's own text where a recipe has
        `own_text`; they may be on another device than the weights.
        """
        if "moments" not in self.statistics:
            raise RecipeError(
                "a repair reads moments and does not declare them; its class must name them in "
                "needs."
            )
        return self.statistics["moments"]


@dataclass(frozen=True)
class Repaired:
    """Says what a cut unit gets.

    Attributes:
        output_weight: (hidden, kept columns), any floating dtype; None for these columns as they
            are.
        bias: (hidden,), of the output projection; None for the one that it has.
    """

    output_weight: Tensor | None = None
    bias: Tensor | None = None


class Repair(Part):
    """Stands at the base of all repairs.

    A simple one has a `name`, declares what it `needs`, and implements `repaired`. One that tunes
    the whole model also implements `tune`.

    Attributes:
        needs: ``{"moments"}``, or nothing: the other statistics are let go before a cut.
        tunes_the_model: whether `tune` is called once, when all layers are cut, with what the dense
            model predicted. A hidden state of every token of all text waits in memory until then.
        adds_bias: whether it gives output projections a bias that they may not have.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    tunes_the_model: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = False

    @property
    def windows_to_write(self) -> int:
        """Count the windows that the model writes for every calibration sample, for this only."""
        return 0

    @classmethod
    def lacks(cls) -> str | None:
        if cls.repaired is Repair.repaired:
            return "does not implement repaired"
        if cls.tunes_the_model and cls.tune is Repair.tune:
            return "tunes the whole model and does not implement tune"
        return None

    def check(self, adapter: MLPAdapter, units: Sequence[Unit]) -> None:
        """Refuse what the architecture does not allow: here a bias that it has no place for.

        Raises:
            RecipeError: one sentence on what cannot be done.
        """
        biased = adapter.bias_key is not None or all(u.output.bias is not None for u in units)
        if self.adds_bias and not biased:
            raise RecipeError(
                f"repair: {self.name} cannot be saved for {adapter.name}: its modelling code has "
                "no bias on the down projection, and a stock reload would drop it; use repair: "
                "least_squares (needs no bias) or none."
            )

    def repaired(self, cut: Cut) -> Repaired:
        """Make up for the cut of one unit, by its own statistics."""
        raise NotImplementedError(f"{type(self).__name__} has no repaired.")

    def tune(self, pruned: PrunedModel) -> dict[str, float]:
        """Change the weights of the whole model, once all layers are cut.

        Weights are set by `cut.surgery.assign_weight`, for they may be offloaded.

        Returns:
            what was found, by name: it joins what config.json says was measured.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tune.")

    def working_bytes(self, unit: Unit, kept: int) -> int:
        """Count the bytes that `repaired` takes where the unit is computed: to plan a run with.

        The default is a copy of the moments, where they are needed, and the output weight in
        float64 twice.

        Args:
            unit: may be on the meta device.
            kept: columns of the output projection that are left.
        """
        moments = 8 * unit.n_columns**2 if self.needs else 0
        return moments + 2 * 8 * unit.hidden_size * unit.n_columns

    def tuning_bytes(self, units: Sequence[Unit]) -> int:
        """Count the bytes that `tune` takes where the model is computed, besides a batch.

        Args:
            units: of all layers, before the cut; may be on the meta device.
        """
        return 0

    @property
    def tuning_passes(self) -> int:
        """Count how often `tune` runs the model forward and backward over its text."""
        return 1 if self.tunes_the_model else 0

    def operations(self, unit: Unit, kept: int, tokens: int) -> float:
        """Count the multiplications and additions for one unit, roughly: to plan with."""
        return 0.0

    def too_little(self, tokens: int, width: int, samples: int) -> str | None:
        """Say that the text is too little for this repair; None where it is enough.

        Args:
            tokens, samples: that the repair reads.
            width: pieces that are kept in the first layer that is cut.
        """
        return None


def cut_columns(keep: Tensor, n_columns: int) -> Tensor:
    """List the columns that are not kept, ascending, int64."""
    mask = torch.ones(n_columns, dtype=torch.bool, device=keep.device)
    mask[keep] = False
    return mask.nonzero().flatten()
