"""Says what is done to the neurons of networks while a model runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas import Atlas
from funcnet_plugin.atlas.atlas import MEMBER
from funcnet_plugin.cut.activity import change_activity
from funcnet_plugin.errors import AtlasError

MODES = ("zero", "mean", "amplify", "keep")


@dataclass(frozen=True)
class Lesion:
    """Says which neurons are changed, and how.

    Attributes:
        neurons: layer -> those that are changed, ascending, int64.
        mode: `zero` silences them; `mean` holds them at their mean activity; `amplify` multiplies
            their activity by `gain` and adds `add`; `keep` silences all other neurons of the layers
            that the atlas knows.
        gain, add: see `mode`.
        means: layer -> (width,), mean activity of every neuron that the atlas knows.
    """

    neurons: Mapping[int, Tensor]
    mode: str
    means: Mapping[int, Tensor]
    gain: float = 1.0
    add: float = 0.0

    @property
    def n_neurons(self) -> int:
        """Count the neurons that it is about."""
        return sum(map(len, self.neurons.values()))

    @property
    def share(self) -> float:
        """Tell which share of the neurons of all layers that the atlas knows it is about."""
        return self.n_neurons / sum(len(mean) for mean in self.means.values())

    def of_others(self, neurons: Mapping[int, Tensor]) -> Lesion:
        """Do the same to other neurons."""
        return replace(self, neurons=neurons)

    def apply(self, units: Sequence[Unit]) -> list[RemovableHandle]:
        """Hook the units until the handles are removed.

        Args:
            units: of all layers, in order.
        """
        changed = self.means if self.mode == "keep" else self.neurons
        return [change_activity(units[i], *self._change(units[i])) for i in changed]

    def _change(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        """Give gain and shift of every column of a unit."""
        named = self.neurons.get(unit.index)
        columns = [] if named is None else unit.columns_of(named)
        gain, shift = torch.ones(unit.n_columns), torch.zeros(unit.n_columns)
        if self.mode == "keep":
            gain = torch.zeros(unit.n_columns)
            gain[columns] = 1.0
            return gain, None
        if self.mode == "zero":
            gain[columns] = 0.0
            return gain, None
        if self.mode == "mean":
            gain[columns], shift[columns] = 0.0, self.means[unit.index][columns]
        else:
            gain[columns], shift[columns] = self.gain, self.add
        return gain, shift if bool(shift.any()) else None


def lesion_of(
    atlas: Atlas,
    networks: Iterable[str],
    mode: str = "zero",
    *,
    gain: float | None = None,
    add: float | None = None,
    threshold: float = MEMBER,
) -> Lesion:
    """Make a lesion of the members of some networks.

    Args:
        networks: names.
        mode: see `Lesion`.
        gain, add: of `amplify`; 2 and 0 if neither is given.
        threshold: smallest size of an entry of a member, see `Atlas.neurons`.

    Raises:
        AtlasError: there is no such network or mode, or nothing, or everything, would be changed.
    """
    if mode not in MODES:
        raise AtlasError(f"there is no lesion mode {mode!r}; choose one of {', '.join(MODES)}.")
    if mode != "amplify" and (gain is not None or add is not None):
        raise AtlasError(f"gain and add are for mode amplify, and this one is {mode}; leave them.")
    if any(value is not None and not math.isfinite(value) for value in (gain, add)):
        raise AtlasError(f"gain and add must be finite numbers, not {gain} and {add}.")
    names = list(networks)
    neurons = atlas.neurons(names, threshold)
    total = sum(len(mean) for mean in atlas.means.values())
    found = sum(map(len, neurons.values()))
    if not found:
        raise AtlasError(
            f"{_short(names)} has no members with entries of {threshold:g} and more, so nothing "
            f"would change; take other networks, or a threshold down to {atlas.cut:g}."
        )
    if found == total and mode != "amplify":
        raise AtlasError(
            f"{_short(names)} has all {total} neurons as members, so nothing would be left to "
            "compare; take fewer networks, or a higher threshold."
        )
    if mode == "amplify" and gain is None:
        gain = 2.0 if add is None else 1.0
    return Lesion(neurons, mode, atlas.means, 1.0 if gain is None else gain, add or 0.0)


def _short(names: Sequence[str]) -> str:
    shown = "+".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}+... ({len(names)} networks)"
