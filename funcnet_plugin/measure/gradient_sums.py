"""Adds up gradients of a loss where a model computes them, batch after batch.

They are taken from what a module gives and is given, not from its weights: an offloaded weight is
another tensor in every pass, and gathers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from funcnet_plugin.adapters import Unit
from funcnet_plugin.adapters.projection import in_size, out_size
from funcnet_plugin.measure.halving import Reading


class GradientSums:
    """Adds up something of the loss's gradients by the output of one module.

    Args:
        module: whose output it is.
        unit: that the module is of.
        place: where sums are.

    Attributes:
        reads_inputs: whether it needs what the module is given.
    """

    reads_inputs: ClassVar[bool] = False
    _total: Tensor

    def __init__(self, module: nn.Module, unit: Unit, place: torch.device) -> None:
        self.unit, self._module, self._place = unit, module, place

    def expect(self, real: Tensor) -> None:
        """Say which tokens of the next batch are text."""
        self._real = real

    def take(self) -> Tensor:
        """Give the sum over tokens away; it is zero where nothing was predicted."""
        total = self._total
        del self._total  # sums of all layers are large, and each is needed once
        return total

    def watch(self, reading: Reading) -> RemovableHandle:
        """Look at the module while a text is read."""
        self._reading = reading
        return self._module.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # Without trainable weights nothing below the first MLP would ask for gradients.
        output = output if output.requires_grad else output.detach().requires_grad_(True)
        inputs = (args[0].detach(),) if self.reads_inputs else ()
        return _Shown.apply(output, self._backward, *inputs)

    def _backward(self, gradient: Tensor, *inputs: Tensor) -> None:
        if self._reading.is_new_to(self):
            flat = (tensor.flatten(0, -2) for tensor in (gradient, *inputs))
            self._total += self._of_batch(*flat).to(self._total)
            self._reading.taken_by(self)

    def _of_batch(self, gradient: Tensor, *inputs: Tensor) -> Tensor:
        """Sum it over the tokens of a batch; tensors are (n_tokens, ...), padding included."""
        raise NotImplementedError


class WeightSums(GradientSums):
    """Adds up the gradients by the weight of a projection.

    The sum is (out, in), float32 of weights in half precision: that would lose what a batch adds to
    the sum of hundreds.
    """

    reads_inputs = True

    def __init__(self, module: nn.Module, unit: Unit, place: torch.device) -> None:
        super().__init__(module, unit, place)
        shape = (out_size(module), in_size(module))
        dtype = torch.promote_types(unit.dtype, torch.float32)
        self._total = torch.zeros(shape, dtype=dtype, device=self._place)

    def _of_batch(self, gradient: Tensor, *inputs: Tensor) -> Tensor:
        if gradient.dtype == torch.float16:  # a sum over tokens may be beyond its range
            return gradient.float().T @ inputs[0].float()
        return gradient.T @ inputs[0]


class OutputSums(GradientSums):
    """Adds up g g' over tokens, g the gradient of the summed loss by the unit's output.

    The sum is (hidden, hidden), float64.
    """

    def __init__(self, unit: Unit, place: torch.device) -> None:
        super().__init__(unit.output, unit, place)
        size = unit.hidden_size
        self._total = torch.zeros(size, size, dtype=torch.float64, device=self._place)

    def _of_batch(self, gradient: Tensor, *inputs: Tensor) -> Tensor:
        g = gradient[self._real.flatten().to(gradient.device)].float()
        return (g.T @ g).double()


class _Shown(torch.autograd.Function):
    """Passes an output on, and shows its gradient on the way back.

    What is shown beside it is saved as autograd saves: a checkpointed layer computes it again.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, see: Callable[..., None], *inputs: Tensor) -> Tensor:
        ctx.see = see
        ctx.save_for_backward(*inputs)
        return output.clone()  # not a view: some layers add to it in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        ctx.see(gradient, *inputs)
        return (gradient, None, *(None for _ in inputs))
