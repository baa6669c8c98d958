"""Changes a projection by the product of two thin matrices.

That is LoRA (Hu et al. 2021, arXiv 2106.09685). The projection itself stays as it is until the
change is folded into it, so its weight may be in half precision, or offloaded, and what an
optimizer keeps is small.
"""

from __future__ import annotations

import math

import torch
from compressed_tensors.offload import get_execution_device
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters.projection import KINDS, in_size, oriented, out_size


class LowRank:
    """Adds ``scale * up (down x)`` to what a projection gives; nothing at the start.

    `down` begins at random and `up` at zero. Both are in units in which one size of step suits all
    projections of all models: `down` gives what is as large as x, and `scale` is the root mean
    square of the weight's rows, so an entry of `up` is a change relative to the weight.

    Args:
        module: a projection.
        rank: of the change, at most.
        generator: of the random matrix, on the CPU.

    Attributes:
        down: (rank, in), float32, where the projection is computed; asks for gradients.
        up: (out, rank), likewise.
    """

    def __init__(self, module: nn.Module, rank: int, generator: torch.Generator) -> None:
        self.module = module
        inputs, outputs = in_size(module), out_size(module)
        rank = min(rank, inputs, outputs)
        place = get_execution_device(module)
        weight = module.weight.detach()
        self._scale = float(weight.float().square().mean().sqrt()) * math.sqrt(inputs)
        start = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        self.down = start.to(place).requires_grad_()
        self.up = torch.zeros(outputs, rank, device=place).requires_grad_()

    def watch(self) -> RemovableHandle:
        """Add the change to what the projection gives, until the handle is removed."""
        return self.module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        inner = x @ self.down.T.to(x.dtype)
        return output + (inner @ (self._scale * self.up).T.to(x.dtype)).to(output.dtype)

    @torch.no_grad()
    def changed_weight(self) -> Tensor:
        """Give the projection's weight with the change, as the module stores it, float32."""
        weight = self.module.weight.detach()
        change = self._scale * (self.up @ self.down)
        return weight.float() + oriented(self.module, change).to(weight.device)


def projections_of(layer: nn.Module) -> list[nn.Module]:
    """List the projections of a decoder layer, those of attention too."""
    return [module for module in layer.modules() if isinstance(module, KINDS)]
