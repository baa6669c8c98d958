"""Holds the networks of one model, and finds sets of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.atlas.maps import Entries, SparseMaps
from funcnet_plugin.errors import AtlasError

# Which entries of a map make a neuron a member of its network: it acts with it this much more
# than neurons do on average, in standard deviations.
MEMBER = 3.0


@dataclass(frozen=True)
class Network:
    """Names one network and says what was found of it.

    Attributes:
        name: `L3.N17`: the number 17 of layer 3, the strongest being 0; `L3-5.N17` of layers 3 to
            5, `ALL.N17` of all layers.
        block: what stands before the dot.
        number: what stands behind it.
        facts: plain values, see docs/atlas.md.
    """

    name: str
    block: str
    number: int
    facts: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """List the layers that it has members in."""
        return [int(layer) for layer in self.facts["layers"]]


@dataclass(frozen=True)
class Atlas:
    """Holds the functional networks of one model.

    Attributes:
        facts: what atlas.json holds besides the networks: model, data, settings, blocks, versions;
            `channels`, how many each layer has, where these are no neurons.
        maps: name of a block -> maps of its networks.
        networks: by name, blocks in order, the strongest network of each first.
        scores: layer -> (width,), float64: what the scorer of the survey gives each neuron.
        means: layer -> (width,), float32: mean activity of each neuron, as it enters the down
            projection. There are neither scores nor means where channels are no neurons.
    """

    facts: Mapping[str, Any]
    maps: Mapping[str, SparseMaps]
    networks: Mapping[str, Network]
    scores: Mapping[int, Tensor]
    means: Mapping[int, Tensor]

    @property
    def widths(self) -> list[int]:
        """Give the neurons of all layers of the model, or the channels that the maps are of."""
        return widths_of(self.facts)

    @property
    def of_neurons(self) -> bool:
        """Tell whether its maps are of the neurons of MLPs, not of other channels."""
        return "channels" not in self.facts

    @property
    def signals(self) -> list[str]:
        """Name what its maps are of."""
        return list(self.facts["settings"]["scorer"]["signals"])

    @property
    def cut(self) -> float:
        """Say down to which size, in deviations, entries of maps were kept."""
        return float(self.facts["settings"]["cut"])

    @cached_property
    def blocks(self) -> dict[str, list[Network]]:
        """Give the networks that were found together, by the name of their block."""
        found: dict[str, list[Network]] = {name: [] for name in self.maps}
        for network in self.networks.values():
            found[network.block].append(network)
        return found

    def entries(self, name: str) -> Entries:
        """Give the large entries of the map of one network.

        Raises:
            AtlasError: there is no such network.
        """
        network = self.network(name)
        return self.maps[network.block].of_network(network.number)

    def network(self, name: str) -> Network:
        """Find a network by its name.

        Raises:
            AtlasError: there is no such network.
        """
        if name not in self.networks:
            raise AtlasError(f"the atlas has no network {name!r}; {self._what_there_is(name)}.")
        return self.networks[name]

    def neurons(self, names: Iterable[str], threshold: float = MEMBER) -> dict[int, Tensor]:
        """List the members of some networks together.

        Args:
            threshold: smallest size of an entry of a member.

        Returns:
            layer -> neurons, ascending, int64; layers without any are left out.

        Raises:
            AtlasError: there is no such network, or the maps were not kept down to that size.
        """
        if not threshold >= self.cut:
            raise AtlasError(
                f"the maps of this atlas hold entries of {self.cut:g} and more, so members cannot "
                f"be told by {threshold:g}; take {self.cut:g} or more."
            )
        found: dict[int, list[Tensor]] = {}
        for name in names:
            for layer, neurons in self.entries(name).above(threshold).neurons().items():
                found.setdefault(layer, []).append(neurons)
        return {layer: torch.cat(parts).unique() for layer, parts in sorted(found.items())}

    def _what_there_is(self, name: str) -> str:
        block, _, _ = name.partition(".")
        if block in self.blocks:
            return f"{block} has {block}.N0 to {block}.N{len(self.blocks[block]) - 1}"
        names = list(self.blocks)
        return f"its networks stand under {names[0]} to {names[-1]}, as in {names[0]}.N0"


def widths_of(facts: Mapping[str, Any]) -> list[int]:
    """Read from the facts of an atlas how many neurons, or channels, each layer has."""
    return list(facts["channels"] if "channels" in facts else facts["model"]["widths"])
