"""Holds the inside of a unit for one calibration sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.finite import check_finite, is_finite

PRODUCT = "product"  # of all signals of a neuron: what enters the output projection


@dataclass(frozen=True)
class Sample:
    """Holds what one unit computed for one calibration sample, padding removed.

    Attributes:
        signals: name -> (n_tokens, width), the model's dtype; see `Unit.signals`.
        inner: (n_tokens, width), what enters the output projection.
        entered: (n_tokens, hidden), what entered the decoder layer, if that is known.
    """

    signals: Mapping[str, Tensor]
    inner: Tensor
    entered: Tensor | None = None

    def check_finite(self, unit: Unit) -> None:
        """Refuse activations that are not finite.

        Args:
            unit: which they are of.

        Raises:
            NumbersError: NaN or infinite; the message names the first place where they are.
        """
        if all(map(is_finite, (self.inner, *self.signals.values()))):
            return
        layer = f"layer {unit.index}: the"
        if self.entered is not None:
            check_finite(self.entered, f"{layer} hidden states that enter the decoder layer")
        for name in reversed(self.signals):
            check_finite(self.signals[name], f"{layer} {unit.signals[name].what} of {unit.name}")
        check_finite(self.inner, f"{layer} inputs of the down projection of {unit.name}")

    def joined(self, names: Sequence[str]) -> Tensor:
        """Put signals side by side, (n_tokens, len(names) * width), one signal after the other.

        Args:
            names: of `signals`, or `PRODUCT`.
        """
        parts = [self.inner if name == PRODUCT else self.signals[name] for name in names]
        return torch.cat(parts, dim=1)
