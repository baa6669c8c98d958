"""Looks for the fewest networks that keep most of what a model does in a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from funcnet_plugin.atlas import Atlas
from funcnet_plugin.errors import AtlasError

ENOUGH = "enough"
_SHARE = 0.95


@dataclass(frozen=True)
class Wanted:
    """Says what is to be kept.

    Attributes:
        task: name.
        share: of the dense model's score.
    """

    task: str
    share: float


def wanted(text: str) -> Wanted | None:
    """Read `enough:TASK` or `enough:TASK:SHARE`; None for a text that is neither.

    Raises:
        AtlasError: the share is none.
    """
    kind, _, rest = text.partition(":")
    if kind != ENOUGH:
        return None
    task, colon, number = rest.rpartition(":")
    if not colon:
        task, share = rest, _SHARE
    else:
        try:
            share = float(number)
        except ValueError:
            task, share = rest, _SHARE  # a name with a colon in it
    if not task or not 0.0 < share <= 1.0:
        raise AtlasError(f"{text!r} asks for nothing; write {ENOUGH}:TASK or {ENOUGH}:TASK:0.95.")
    return Wanted(task, share)


def ranked(atlas: Atlas) -> list[str]:
    """List all networks, those of most variance first."""
    every = sorted(atlas.networks.values(), key=lambda n: n.facts["variance"], reverse=True)
    return [network.name for network in every]


def fewest(
    networks: Sequence[str], keeps: Callable[[Sequence[str]], float], needed: float, what: str
) -> list[str]:
    """Find how many networks, from the first on, are enough, by halving.

    A score need not rise with every network, so this is one number that is enough where one less
    is not.

    Args:
        networks: in their order.
        keeps: measures the score with these networks and no others.
        needed: score.
        what: is kept, for the message.

    Raises:
        AtlasError: all of them are not enough.
    """
    most = keeps(networks)
    if most < needed:
        raise AtlasError(
            f"{what}: all {len(networks)} networks together keep {most:.3f} and {needed:.3f} is "
            "asked for; ask for less, or take a lower threshold."
        )
    too_few, enough = 0, len(networks)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if keeps(networks[:middle]) >= needed:
            enough = middle
        else:
            too_few = middle
    return list(networks[:enough])
