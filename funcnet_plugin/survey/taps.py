"""Finds what a survey reads in decoder layers: any module's input or output, by its path."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.offloading import device_of

_SIDES = ("input", "output")
LAYER = "output"  # of the layer itself: what it adds up to in the residual stream
# Nothing else in a layer is as long, so a tensor that is tells tokens from heads.
_SAMPLES, _TOKENS = 2, 13


@dataclass(frozen=True)
class Tap:
    """Says which tensor of every decoder layer is read.

    Attributes:
        side: of the module.
        path: of the module inside of the layer; "" is the layer itself.
    """

    side: Literal["input", "output"]
    path: str

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Read `output:self_attn.q_proj`, or `output` of the layer.

        Raises:
            RecipeError: it is written in another way.
        """
        side, _, path = text.partition(":")
        if side not in _SIDES:
            raise RecipeError(
                f"there is no signal {text!r}; write act, up or product for neurons, input:PATH or "
                "output:PATH for a module inside of every decoder layer, input or output for the "
                "layer itself."
            )
        return cls(side, path)

    @property
    def name(self) -> str:
        """Write it as `parse` reads it."""
        return f"{self.side}:{self.path}" if self.path else self.side

    def module_in(self, layer: nn.Module) -> nn.Module:
        """Find the module that it reads.

        Raises:
            RecipeError: there is none at its path; the message lists those that are.
        """
        try:
            return layer.get_submodule(self.path)
        except AttributeError:
            paths = [path for path, _ in layer.named_modules() if path]
            raise RecipeError(
                f"a decoder layer has no module {self.path!r}, as {self.name} asks for; it has "
                f"{', '.join(paths)}."
            ) from None

    def hook(self, layer: nn.Module, take: Callable[[Any], None]) -> RemovableHandle:
        """Have `take` called with what the module is given, or gives, each time that it is run."""
        module = self.module_in(layer)

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = kwargs.get("hidden_states", next(iter(kwargs.values()), None))
            take(args[0] if args else given)

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            take(output[0] if isinstance(output, tuple) and output else output)

        if self.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


@torch.no_grad()
def channels_in(model: nn.Module, units: Sequence[Unit], taps: Sequence[Tap]) -> dict[int, int]:
    """Count the channels that taps give in each layer, by a pass over a few tokens.

    Args:
        model: in evaluation mode, or on the meta device.
        units: of all layers, in order.

    Returns:
        layer -> channels, the same for each tap.

    Raises:
        RecipeError: there is no such module, it is not run once, what it is given or gives is not
            one vector for each token, or taps of one layer have different numbers of channels.
    """
    seen: dict[tuple[int, str], Any] = {}
    runs: Counter[tuple[int, str]] = Counter()

    def taker(key: tuple[int, str]) -> Callable[[Any], None]:
        def take(value: Any) -> None:
            runs[key] += 1
            seen[key] = value.shape if isinstance(value, Tensor) else type(value).__name__

        return take

    handles = [
        tap.hook(unit.decoder_layer, taker((unit.index, tap.name)))
        for unit in units
        for tap in taps
    ]
    with hooked(handles):
        _run(model)
    found: dict[int, int] = {}
    for unit in units:
        of_tap = {}
        for tap in taps:
            key = (unit.index, tap.name)
            if runs[key] != 1:
                raise RecipeError(
                    f"{tap.name} is read when its module is run, and layer {unit.index} runs it "
                    f"{runs[key]} times instead of once; name another module."
                )
            of_tap[tap.name] = _channels(seen[key], f"{tap.name} of layer {unit.index}")
        if len(set(of_tap.values())) > 1:
            said = ", ".join(f"{name} has {n}" for name, n in of_tap.items())
            raise RecipeError(
                f"the signals of one atlas must have equally many channels, and in layer "
                f"{unit.index} {said}; make an atlas of each."
            )
        found[unit.index] = next(iter(of_tap.values()))
    return found


def by_token(tensor: Tensor, batch: int, length: int) -> Tensor:
    """Give (batch, length, channels); OPT flattens the batch, and heads may be apart."""
    return tensor.reshape(batch, length, -1)


def _channels(seen: torch.Size | str, what: str) -> int:
    if isinstance(seen, torch.Size):
        apart = seen[:2] == (_SAMPLES, _TOKENS) and len(seen) > 2
        flat = seen[:1] == (_SAMPLES * _TOKENS,) and len(seen) == 2
        if apart or flat:
            return seen.numel() // (_SAMPLES * _TOKENS)
        seen = f"of shape {tuple(seen)} for {_SAMPLES} samples of {_TOKENS} tokens"
    raise RecipeError(f"{what} is {seen}, not one vector for each token; name another module.")


def _run(model: nn.Module) -> None:
    device = device_of(model)
    shape = (_SAMPLES, _TOKENS)
    given: Mapping[str, Any] = {}
    if device.type == "meta":
        # what is made of a mask of two dimensions, or of none, depends on its values
        given = {"attention_mask": torch.zeros(_SAMPLES, 1, _TOKENS, _TOKENS, device=device)}
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = torch.zeros(shape, dtype=torch.long, device=device)
    model(input_ids=torch.zeros(shape, dtype=torch.long, device=device), use_cache=False, **given)
