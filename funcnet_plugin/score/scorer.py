"""Defines scorers: parts that say what each piece of a unit is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.statistics import Watch
from funcnet_plugin.measure.workload import Workload
from funcnet_plugin.plugins import Part, hookspec


@hookspec
def funcnet_scorers() -> Iterable[type[Scorer]]:
    """Return the scorers that this package brings: classes that derive from `Scorer`.

    A plugin is a module with a function of this name, marked with `funcnet_plugin.hookimpl`, and
    named in the entry-point group `funcnet_plugin.scorers` of its package. A name that is taken
    already is refused.
    """


@dataclass(frozen=True)
class Evidence:
    """Holds what one scorer is given of one unit that was calibrated.

    Attributes:
        unit: not cut yet.
        seed: of the recipe.
        statistics: what the scorer declared, by name; see the properties.
    """

    unit: Unit
    seed: int
    statistics: Mapping[str, Any]

    @property
    def moments(self) -> Moments:
        """Give the moments of what enters the output projection.

        They are over the calibration tokens, and over the model's own text where a recipe has
        `own_text`; they may be on another device than the weights.
        """
        return self._declared("moments")

    @property
    def weight_gradients(self) -> tuple[Tensor, ...]:
        """Give what `measure.gradients.weight_gradients` found, one for each projection."""
        return self._declared("weight_gradients")

    @property
    def output_gradients(self) -> Tensor:
        """Give E[g g'] of `measure.gradients.output_gradients`, (hidden, hidden), float64."""
        return self._declared("output_gradients")

    @property
    def watch(self) -> Any:
        """Give the scorer's own watch of the unit, after the last sample."""
        return self._declared("samples")

    def _declared(self, name: str) -> Any:
        if name not in self.statistics:
            declared = ", ".join(self.statistics) or "nothing"
            raise RecipeError(
                f"a scorer reads {name} and declares {declared}; its class must name it in needs."
            )
        return self.statistics[name]


@dataclass(frozen=True)
class Setting:
    """Says what a scorer shares with the run it works in.

    Attributes:
        seed: of the recipe.
        max_bytes: how much one unit's signals of one group may take; None for no limit.
        n_samples: of calibration, those of all processes; None where that is not known.
    """

    seed: int = 0
    max_bytes: int | None = None
    n_samples: int | None = None


class Scoring:
    """Puts a scorer to work in one run: it may keep something between units.

    Args:
        scorer: the part.
        setting: of the run.
    """

    def __init__(self, scorer: Scorer, setting: Setting) -> None:
        self.scorer, self.setting = scorer, setting

    def watch(self, unit: Unit) -> Watch | None:
        """Make what looks at the unit's samples; None for a scorer that needs none of them."""
        return None

    def score(self, evidence: Evidence) -> Tensor | None:
        """Score one unit; None if scores come from `scores` when all layers were seen."""
        return self.scorer.score(evidence)

    def scores(self, processes: Processes | None = None) -> dict[int, Tensor]:
        """Score all units at once, layer -> (width,), when the last layer was seen."""
        return {}

    def report(self, unit: Unit, watch: Watch | None) -> dict[str, Any]:
        """Say what was found in a unit, as plain values for config.json."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give what is kept between units, for a scorer that works across layers."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what `state` gave in another run."""


class Scorer(Part):
    """Serves as the base of all scorers.

    A simple one has a `name`, declares what it `needs`, and implements `score`.

    Attributes:
        needs: names of `measure.statistics.STATISTICS`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def group_size(self) -> int:
        """Say how many samples in a row belong together, and stay in one process."""
        return 1

    @property
    def across_layers(self) -> bool:
        """Tell whether scores are there only when all layers were seen."""
        return False

    def check(self, units: Sequence[Unit], n_samples: int | None, setting: Setting) -> None:
        """Refuse what the model's shapes do not allow.

        Args:
            units: those that may be cut; may be on the meta device.
            n_samples: of calibration; None where that is not known.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """

    def check_text(self, units: Sequence[Unit], lengths: Sequence[int], shared: bool) -> None:
        """Refuse what the weights or the calibration text do not allow.

        Args:
            lengths: tokens of each sample, in the order of the run; empty where not known.
            shared: whether other processes read other samples.

        Raises:
            FuncnetError: one sentence on what cannot be done.
        """

    @classmethod
    def lacks(cls) -> str | None:
        scores = cls.score is not Scorer.score or cls.begin is not Scorer.begin
        return None if scores else "implements neither score nor begin"

    def begin(self, setting: Setting) -> Scoring:
        """Start to work in one run."""
        return Scoring(self, setting)

    def score(self, evidence: Evidence) -> Tensor:
        """Score the pieces of one unit.

        Returns:
            (width,), any real dtype and device; larger is more important.
        """
        raise NotImplementedError(f"{type(self).__name__} has no score.")

    def working_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        """Count the bytes that measuring and scoring one unit takes: to plan a run with.

        They are counted where the unit is computed, at their peak, and without the statistics that
        the run itself keeps. The default is a copy of the moments, where they are needed, and
        the output weight in float64 twice.

        Args:
            unit: may be on the meta device.
            workload: the calibration text.
            setting: of the run.
        """
        columns = unit.n_columns
        moments = 8 * columns**2 if "moments" in self.needs else 0
        return moments + 2 * 8 * unit.hidden_size * columns

    def signal_bytes(self, unit: Unit, workload: Workload, setting: Setting) -> int:
        """Count the bytes of what a watch keeps of the samples of one unit, at its most."""
        return 0

    def across_bytes(self, units: Sequence[Unit], workload: Workload) -> int:
        """Count the bytes that are kept from layer to layer, and for scores of all at once."""
        return 0

    def operations(self, unit: Unit, workload: Workload) -> float:
        """Count the multiplications and additions of scoring one unit, roughly: to plan with."""
        return 0.0
