"""Gathers statistics of one unit, sample by sample, and says which ones there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.sample import Sample

# What scorers and repairs may declare that they need.
STATISTICS = {
    "moments": "first and second moments of what enters the output projection, `Moments`",
    "weight_gradients": "mean gradients of the loss by the unit's weights, `weight_gradients`",
    "output_gradients": "E[g g'] of the loss's gradients by the unit's output, `output_gradients`",
    "samples": "the unit's signals in every sample, see `Watch`",
}


def unknown_statistics(needs: frozenset[str]) -> str | None:
    """Say which declared statistics do not exist; None if all do."""
    unknown = sorted(set(needs) - set(STATISTICS))
    if not unknown:
        return None
    return f"needs {', '.join(unknown)}, and the statistics are {', '.join(STATISTICS)}"


class Watch(Protocol):
    """Gathers for one scorer what it needs of the samples of one unit."""

    def add(self, sample: Sample) -> None:
        """Take one sample in, in the order of the calibration data."""

    def merge(self, processes: Processes) -> None:
        """Take in what the watches of the other processes saw."""

    def rest(self) -> None:
        """Let go of what is not needed once the last sample was seen and scored."""

    def state(self) -> dict[str, Any]:
        """Give plain values of a unit that was seen to the end, its score left out."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave in another run."""


@dataclass
class LayerStatistics:
    """Adds up the statistics of one unit.

    Attributes:
        moments: None where nothing in the recipe needs them.
        watches: by the name of the scorer.
        n_samples: how many were seen.
    """

    moments: Moments | None = None
    watches: dict[str, Watch] = field(default_factory=dict)
    n_samples: int = 0

    def add(self, sample: Sample) -> None:
        """Take one sample in."""
        self.n_samples += 1
        if self.moments is not None:
            self.moments.add(sample.inner)
        for watch in self.watches.values():
            watch.add(sample)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give tensors and plain values of a unit that was seen to the end."""
        tensors = {}
        if self.moments is not None:
            tensors = {f"moments/{key}": value for key, value in self.moments.state().items()}
        watched = {name: watch.state() for name, watch in self.watches.items()}
        return tensors, {"n_samples": self.n_samples, "watches": watched}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what `state` gave in another run."""
        self.n_samples = facts["n_samples"]
        if self.moments is not None:
            self.moments.load_state({k: tensors[f"moments/{k}"] for k in ("count", "sum", "gram")})
        for name, watch in self.watches.items():
            watch.load_state(facts["watches"][name])

    def merge(self, processes: Processes) -> None:
        """Take in what the other processes saw."""
        self.n_samples = processes.total(self.n_samples)
        if self.moments is not None:
            self.moments.merge(processes)
        for watch in self.watches.values():
            watch.merge(processes)

    def check_finite(self, unit: Unit) -> None:
        """Refuse moments that are not finite, of activations that were.

        Raises:
            NumbersError: their products overflow.
        """
        if self.moments is not None:
            what = f"layer {unit.index}: the second moments inside {unit.name}"
            check_finite(self.moments.second, what, unit.dtype)

    def wait(self) -> None:
        """Leave the device of the weights: the unit is scored, and cut after all others are."""
        if self.moments is not None:
            self.moments = self.moments.to("cpu")
        for watch in self.watches.values():
            watch.rest()
