"""Keeps the maps of networks where they are large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entries:
    """Holds entries of maps, one row for each.

    Attributes:
        layer, signal, neuron: (n,), int64; `signal` counts the signals of a neuron.
        z: (n,), float32, in standard deviations of the map.
    """

    layer: Tensor
    signal: Tensor
    neuron: Tensor
    z: Tensor

    def above(self, threshold: float) -> Entries:
        """Leave the entries whose size is at least `threshold`."""
        large = self.z.abs() >= threshold
        return Entries(self.layer[large], self.signal[large], self.neuron[large], self.z[large])

    def neurons(self) -> dict[int, Tensor]:
        """List layer -> its neurons that have an entry, ascending, int64."""
        layers = self.layer.unique().tolist()
        return {layer: self.neuron[self.layer == layer].unique() for layer in layers}


@dataclass(frozen=True)
class SparseMaps:
    """Holds the maps of the networks that were found together.

    Attributes:
        entries: of all maps, one map after the other.
        offsets: (k + 1,), int64: where each map begins and ends.
    """

    entries: Entries
    offsets: Tensor

    @classmethod
    def of(
        cls, maps: Tensor, layers: Mapping[int, slice], widths: Mapping[int, int], cut: float
    ) -> SparseMaps:
        """Keep what is large of whole maps.

        Args:
            maps: (k, n_signals of all layers), z-scored.
            layers: number of a layer -> its columns: all neurons of one signal after the other.
            widths: number of a layer -> its neurons.
            cut: entries smaller than this are left out.
        """
        found: list[Entries] = []
        of_map = []
        for layer, columns in layers.items():
            part = maps[:, columns]
            k, column = (part.abs() >= cut).nonzero(as_tuple=True)
            width = widths[layer]
            found.append(
                Entries(
                    torch.full_like(column, layer), column // width, column % width,
                    part[k, column].float(),
                )
            )  # fmt: skip
            of_map.append(k)
        number = torch.cat(of_map)
        order = number.argsort(stable=True)
        fields = ("layer", "signal", "neuron", "z")
        joined = [torch.cat([getattr(e, name) for e in found])[order] for name in fields]
        counts = torch.bincount(number, minlength=len(maps))
        return cls(Entries(*joined), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of_network(self, number: int) -> Entries:
        """Give the entries of one map."""
        begin, end = self.offsets[number : number + 2].tolist()
        e = self.entries
        return Entries(e.layer[begin:end], e.signal[begin:end], e.neuron[begin:end], e.z[begin:end])

    def state(self) -> dict[str, Tensor]:
        """Give tensors for a file."""
        e = self.entries
        return {
            "offsets": self.offsets,
            "layer": e.layer.int(),
            "signal": e.signal.to(torch.int8),
            "neuron": e.neuron.int(),
            "z": e.z,
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], widths: Sequence[int]) -> SparseMaps:
        """Make one of what `state` gave.

        Args:
            widths: of all layers of the model.

        Raises:
            ValueError: they do not fit each other, or the model; the message says what.
        """
        layer, signal, neuron = (tensors[n].long() for n in ("layer", "signal", "neuron"))
        offsets, z = tensors["offsets"].long(), tensors["z"].float()
        n = len(z)
        if any(part.shape != (n,) for part in (layer, signal, neuron)):
            raise ValueError("the entries of its maps are not of one length")
        if offsets[0] != 0 or offsets[-1] != n or bool((offsets.diff() < 0).any()):
            raise ValueError("its maps do not begin where the one before ends")
        if n and not bool(torch.isfinite(z).all()):
            raise ValueError("its maps hold NaN or infinite values")
        inside = (layer >= 0) & (layer < len(widths))
        if not bool(inside.all()):
            raise ValueError(f"its maps name a layer that is not one of {len(widths)}")
        if bool(((neuron < 0) | (neuron >= torch.tensor(widths)[layer])).any()):
            raise ValueError("its maps name a neuron beyond the width of its layer")
        return cls(Entries(layer, signal, neuron, z), offsets)
