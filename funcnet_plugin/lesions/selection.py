"""Reads which networks are meant: by name, layer, size, strength or stability."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from funcnet_plugin.atlas import Atlas, Network
from funcnet_plugin.errors import AtlasError

ALL = "all"
# What networks are ranked by, largest first.
_RANKED: dict[str, Callable[[Network], float]] = {
    "strongest": lambda network: network.facts["variance"],
    "largest": lambda network: sum(f["members"] for f in network.facts["layers"].values()),
    "sparsest": lambda network: network.facts["kurtosis"],
}
_STABLE = "stable"
GRAMMAR = (
    "write networks as L3.N17, all of a layer as L3, strongest:10, largest:10, sparsest:10, "
    "stable:0.9 or all, several joined by +"
)


def select(atlas: Atlas, text: str) -> list[str]:
    """Find the networks that a text names.

    Args:
        text: `L3.N17` one network, `L3` all of a block, `strongest:10` those that make most of the
            signals' variance, `largest:10` those of most members, `sparsest:10` those whose maps
            have the highest kurtosis, `stable:0.9` those found again in other text with at least
            that correlation, `all`; several joined by `+` are taken together.

    Returns:
        names, each once.

    Raises:
        AtlasError: there is no such network, or the text is none of these.
    """
    found = [name for part in text.split("+") for name in _part(atlas, part.strip())]
    return list(dict.fromkeys(found))


def _part(atlas: Atlas, part: str) -> Iterable[str]:
    if part == ALL:
        return list(atlas.networks)
    if part in atlas.blocks:
        return [network.name for network in atlas.blocks[part]]
    how, colon, value = part.partition(":")
    if colon and how in _RANKED and value.isdecimal() and int(value) > 0:
        ranked = sorted(atlas.networks.values(), key=_RANKED[how], reverse=True)
        if int(value) > len(ranked):
            raise AtlasError(
                f"{part} asks for {value} networks and the atlas has {len(ranked)}; ask for fewer."
            )
        return [network.name for network in ranked[: int(value)]]
    if colon and how == _STABLE and re.fullmatch(r"0?\.\d+|[01](\.0*)?", value):
        return _stable(atlas, float(value))
    if re.fullmatch(r"\w[\w-]*\.N\d+", part):
        return [atlas.network(part).name]
    raise AtlasError(f"{part!r} names no networks; {GRAMMAR}.")


def _stable(atlas: Atlas, least: float) -> list[str]:
    known = {n.name: n.facts["stability_groups"] for n in atlas.networks.values()}
    if all(value is None for value in known.values()):
        raise AtlasError(
            "the atlas says nothing of stability, for it was made of one group of samples; make it "
            "with a smaller samples_per_group."
        )
    found = [name for name, value in known.items() if value is not None and value >= least]
    if not found:
        best = max(value for value in known.values() if value is not None)
        raise AtlasError(f"no network is as stable as {least:g}; the most stable has {best:.2f}.")
    return found
