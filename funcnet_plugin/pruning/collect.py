"""What calibration gathers about one layer, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.pruning.compensation import Moments
from funcnet_plugin.pruning.finite import check_finite, is_finite
from funcnet_plugin.pruning.global_networks import LayerFeed
from funcnet_plugin.pruning.networks import NetworkScorer
from funcnet_plugin.pruning.processes import Processes

SIGNALS = ("act", "up")
HOLD_OUT = 8


@dataclass(frozen=True)
class MLPSample:
    """The inside of one MLP for one calibration sample, padding removed.

    Attributes:
        act, up: (n_tokens, width), the model's dtype: activated gate and up projection; no `up` in
            an ungated MLP.
        hidden: (n_tokens, width), their product, which enters the down projection.
        entered: (n_tokens, hidden), what entered the decoder layer, if that is known.
    """

    act: Tensor
    up: Tensor | None
    hidden: Tensor
    entered: Tensor | None = None

    def check_finite(self, block: MLPBlock) -> None:
        """Refuse activations that are not finite.

        Args:
            block: which they are of.

        Raises:
            NumbersError: NaN or infinite; the message names the first place where they are.
        """
        if all(t is None or is_finite(t) for t in (self.hidden, self.act, self.up)):
            return
        layer, mlp = f"layer {block.index}: the", block.name
        if self.entered is not None:
            check_finite(self.entered, f"{layer} hidden states that enter the decoder layer")
        if self.up is not None:
            check_finite(self.up, f"{layer} outputs of the up projection of {mlp}")
        check_finite(self.act, f"{layer} outputs of the activation of {mlp}")
        check_finite(self.hidden, f"{layer} inputs of the down projection of {mlp}")

    def signals(self, channels: list[str]) -> Tensor:
        """(n_tokens, len(channels) * width), channel-major."""
        return torch.cat([getattr(self, channel) for channel in channels], dim=1)


@dataclass
class LayerStatistics:
    """The streamed statistics of one layer; None for what the recipe does not need."""

    channels: list[str]
    moments: Moments | None = None
    networks: NetworkScorer | LayerFeed | None = None
    held_out: Moments | None = None  # of every HOLD_OUT-th sample, which are in `moments` too
    n_samples: int = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of a layer that was seen to the end, but for its scores."""
        tensors, facts = {}, {"n_samples": self.n_samples}
        if self.moments is not None:
            tensors |= {f"moments/{key}": value for key, value in self.moments.state().items()}
        if self.held_out is not None:
            tensors |= {f"held_out/{key}": value for key, value in self.held_out.state().items()}
        if self.networks is not None:
            facts["networks"] = self.networks.state()
        return tensors, facts

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.n_samples = facts["n_samples"]
        for name, moments in (("moments", self.moments), ("held_out", self.held_out)):
            if moments is not None:
                moments.load_state(
                    {key: tensors[f"{name}/{key}"] for key in ("count", "sum", "gram")}
                )
        if self.networks is not None:
            self.networks.load_state(facts["networks"])

    def merge(self, processes: Processes) -> None:
        """Take what the other processes saw in."""
        self.n_samples = sum(processes.gather(self.n_samples))
        if self.moments is not None:
            self.moments.merge(processes)
        if self.held_out is not None:
            self.held_out.merge(processes)
        if self.networks is not None:
            self.networks.merge(processes)

    def check_finite(self, block: MLPBlock) -> None:
        """Refuse moments that are not finite, of activations that were.

        Raises:
            NumbersError: their products overflow.
        """
        for moments in (self.moments, self.held_out):
            if moments is not None:
                what = f"layer {block.index}: the second moments inside {block.name}"
                check_finite(moments.second, what, block.down.weight.dtype)

    def wait(self) -> None:
        """Leave the device of the weights: the layer is scored, and cut after all others are."""
        if self.moments is not None:
            self.moments = self.moments.to("cpu")
        if self.held_out is not None:
            self.held_out = self.held_out.to("cpu")
        if self.networks is not None:
            self.networks.drop_unfinished()

    def add(self, sample: MLPSample) -> None:
        self.n_samples += 1
        if self.moments is not None:
            self.moments.add(sample.hidden)
        if self.held_out is not None and self.n_samples % HOLD_OUT == 0:
            self.held_out.add(sample.hidden)
        if self.networks is not None:
            self.networks.add(sample.signals(self.channels))
