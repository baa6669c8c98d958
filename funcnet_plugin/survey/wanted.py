"""Decides what an atlas is of: neurons, or the channels of modules that are named by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.sample import PRODUCT
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.score.parts import SCORERS
from funcnet_plugin.survey.channels import ChannelNetworks, Channels
from funcnet_plugin.survey.sweep import Watched
from funcnet_plugin.survey.taps import Tap, channels_in

_NEURONS = ("act", "up", PRODUCT)


class Wanted:
    """Holds what is asked for.

    Args:
        scorer: says how networks are found.
        taps: what they are of; neurons if there are none.
    """

    def __init__(self, scorer: Networks, taps: Sequence[Tap] = ()) -> None:
        self._taps = taps
        self._channels: dict[int, int] | None = None
        self.scorer = ChannelNetworks.like(scorer, taps) if taps else scorer

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Wanted:
        """Read the parameters of the scorer `networks`, whose `signals` may be taps.

        Raises:
            RecipeError: there is no such parameter, value or signal.
        """
        parameters = dict(parameters)
        signals = parameters.get("signals")
        if signals == []:
            raise RecipeError("no signals are named; write act,up for the neurons of MLPs.")
        named = signals if isinstance(signals, list) else []
        paths = [name for name in named if isinstance(name, str) and name not in _NEURONS]
        if paths:
            taps = list(map(Tap.parse, paths))
            if len(paths) < len(named) or len(set(taps)) < len(taps):
                raise RecipeError(
                    f"the signals {', '.join(map(str, named))} do not go together: neurons (act, "
                    "up, product) and modules have an atlas each, and each signal is named once."
                )
            del parameters["signals"]
            return cls(SCORERS.make({"name": "networks"} | parameters), taps)
        return cls(SCORERS.make({"name": "networks"} | parameters))

    def plan(self, shapes: nn.Module, units: Sequence[Unit]) -> Sequence[Watched]:
        """Say what will be watched of a model on the meta device.

        Returns:
            nothing where the model cannot be run there: that is seen once it has weights, then.

        Raises:
            RecipeError: the model has no such modules, see `taps.channels_in`.
        """
        try:
            return self._watched(shapes.eval(), units)
        except (RuntimeError, TypeError):  # it looks at values, or takes no mask of four dimensions
            return []

    def there(self, model: nn.Module, units: Sequence[Unit]) -> Sequence[Watched]:
        """Say what is watched of the model itself, after `plan`."""
        return self._watched(model, units)

    def _watched(self, model: nn.Module, units: Sequence[Unit]) -> Sequence[Watched]:
        if not self._taps:
            return units
        if self._channels is None:
            self._channels = channels_in(model, units, self._taps)
        return [Channels.of(unit, self._taps, self._channels[unit.index]) for unit in units]
