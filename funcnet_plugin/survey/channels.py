"""Shows the channels of any modules of a decoder layer as something that networks are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.recorder import real_tokens
from funcnet_plugin.score.networks import Networks
from funcnet_plugin.survey.taps import Tap, by_token


@dataclass(frozen=True)
class Channels:
    """Says what is read of one decoder layer; has what a search for networks asks of a `Unit`.

    Attributes:
        index: number of the decoder layer.
        decoder_layer: it.
        width: channels of each tap.
        signals: name -> tap.
    """

    index: int
    decoder_layer: nn.Module
    width: int
    signals: Mapping[str, Tap]

    @classmethod
    def of(cls, unit: Unit, taps: Sequence[Tap], width: int) -> Channels:
        """Make one of the layer that a unit stands in."""
        return cls(unit.index, unit.decoder_layer, width, {tap.name: tap for tap in taps})

    def record(self, deliver: Callable[[ChannelSample], None]) -> list[RemovableHandle]:
        """Hook the layer; samples are handed over when it was run, in the order of the text."""
        seen: dict[str, Tensor] = {}
        tokens: dict[str, Any] = {}

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            names = list(inspect.signature(module.forward).parameters)
            given = dict(zip(names, args, strict=False)) | kwargs
            tokens["shape"] = given["hidden_states"].shape[:2]
            tokens["real"] = real_tokens(given.get("attention_mask"), *tokens["shape"])

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            (batch, length), real = tokens["shape"], tokens["real"]
            parts = {name: by_token(seen.pop(name), batch, length) for name in self.signals}
            for row in range(batch):
                found = {name: part[row].detach() for name, part in parts.items()}
                if real is not None:
                    found = {name: p[real[row].to(p.device)] for name, p in found.items()}
                deliver(ChannelSample(found))

        layer = self.decoder_layer
        taps = [
            tap.hook(layer, partial(seen.__setitem__, name)) for name, tap in self.signals.items()
        ]
        first = layer.register_forward_pre_hook(before, with_kwargs=True)
        return [first, *taps, layer.register_forward_hook(after)]  # last: after a tap of the layer


@dataclass(frozen=True)
class ChannelSample:
    """Holds what taps gave for one sample, padding removed; stands where `Sample` does.

    Attributes:
        signals: name -> (n_tokens, width), the model's dtype.
        inner: nothing; channels are no neurons that enter a down projection.
    """

    signals: Mapping[str, Tensor]
    inner: None = None

    def joined(self, names: Sequence[str]) -> Tensor:
        """Put signals side by side, (n_tokens, len(names) * width), one signal after the other."""
        return torch.cat([self.signals[name] for name in names], dim=1)

    def check_finite(self, unit: Channels) -> None:
        """Refuse signals that are not finite.

        Raises:
            NumbersError: NaN or infinite; the message names the first place where they are.
        """
        for name, tensor in self.signals.items():
            check_finite(tensor, f"layer {unit.index}: the {name}")


class ChannelNetworks(Networks):
    """Finds networks of the channels of modules; their scores prune nothing.

    :param signals: taps, see `Tap.parse`; the other parameters are those of `Networks`.
    """

    signals: list[str] = Field(min_length=1)

    @classmethod
    def like(cls, networks: Networks, taps: Sequence[Tap]) -> ChannelNetworks:
        """Take the other parameters over."""
        fields = {name: getattr(networks, name) for name in type(networks).model_fields}
        return cls(**fields | {"signals": [tap.name for tap in taps]})

    def signals_of(self, unit: Channels) -> list[str]:
        return list(unit.signals)

    def check_text(self, units: Sequence[Channels], lengths: Sequence[int], shared: bool) -> None:
        self.check_lengths(units, lengths, shared)
