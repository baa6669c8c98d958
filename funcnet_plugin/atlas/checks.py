"""Refuses to use an atlas with a model that it was not made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from funcnet_plugin.adapters import Unit
from funcnet_plugin.atlas.atlas import Atlas
from funcnet_plugin.errors import AtlasError
from funcnet_plugin.measure.fingerprint import fingerprint_unit


def check_neurons(atlas: Atlas, source: str) -> None:
    """Refuse an atlas whose networks are not of neurons, where neurons are to be changed.

    Args:
        source: the directory of the atlas.

    Raises:
        AtlasError: they are of other channels.
    """
    if not atlas.of_neurons:
        raise AtlasError(
            f"the atlas {source} is of {', '.join(atlas.signals)}, whose channels are no neurons "
            "that can be cut or silenced; make one with --signals act,up."
        )


def check_widths(atlas: Atlas, units: Sequence[Unit], source: str) -> None:
    """Refuse an atlas of other shapes; weights are not looked at.

    Args:
        units: of the model, or some of them; may be on the meta device.
        source: the directory of the atlas.

    Raises:
        AtlasError: a layer has another width there, or is not there; or it is of no neurons.
    """
    check_shape(atlas, {unit.index: unit.width for unit in units}, source)


def check_shape(atlas: Atlas, widths: Mapping[int, int], source: str) -> None:
    """Do what `check_widths` does, for layer -> width."""
    check_neurons(atlas, source)
    for layer, width in widths.items():
        if layer >= len(atlas.widths) or atlas.widths[layer] != width:
            found = atlas.widths[layer : layer + 1] or ["none"]
            raise AtlasError(
                f"the atlas {source} is of a model whose layer {layer} has a width of "
                f"{found[0]}, and here it is {width}; make an atlas of this model."
            )


def check_depth(atlas: Atlas, n_layers: int, source: str) -> None:
    """Refuse an atlas of a deeper model, whose last layers would be looked for in vain.

    Args:
        n_layers: of the whole model.
        source: the directory of the atlas.

    Raises:
        AtlasError: it has more layers.
    """
    if n_layers < len(atlas.widths):
        raise AtlasError(
            f"the atlas {source} is of a model of {len(atlas.widths)} layers, and this one has "
            f"{n_layers}; make an atlas of this model."
        )


def check_weights(atlas: Atlas, units: Sequence[Unit], source: str) -> None:
    """Refuse an atlas of other weights.

    Args:
        units: see `check_widths`, in memory.
        source: the directory of the atlas.

    Raises:
        AtlasError: a layer has other weights.
    """
    known = atlas.facts["model"]["weights"]
    for unit in units:
        if known[unit.index] != fingerprint_unit(unit):
            raise AtlasError(
                f"the atlas {source} was made of other weights: those of layer {unit.index} "
                "differ; make an atlas of this model."
            )
