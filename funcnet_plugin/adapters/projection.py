"""Sees the two kinds of module that hold the weights of an MLP alike.

transformers' Conv1D (GPT-2) is a Linear with its weight transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

# An offload cache brings a weight onto the device for a mere look at its shape; this prevents it.
from compressed_tensors.offload import disable_onloading
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

KINDS = (nn.Linear, Conv1D)
_COUNTED = ("weight", "bias")


def in_size(module: nn.Module) -> int:
    return module.nx if isinstance(module, Conv1D) else module.in_features


def out_size(module: nn.Module) -> int:
    return module.nf if isinstance(module, Conv1D) else module.out_features


def oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """Turn a weight of the module to (out, in), or such a matrix as the module stores it."""
    return weight.T if isinstance(module, Conv1D) else weight


def set_in_size(module: nn.Module, size: int) -> None:
    setattr(module, "nx" if isinstance(module, Conv1D) else "in_features", size)


def set_out_size(module: nn.Module, size: int) -> None:
    setattr(module, "nf" if isinstance(module, Conv1D) else "out_features", size)


def parameters_of(modules: Sequence[nn.Module]) -> int:
    """Count weights and biases; not scales, which quantization later in a recipe has given them."""
    with disable_onloading():
        held = [module._parameters.get(name) for module in modules for name in _COUNTED]
        return sum(p.numel() for p in held if p is not None)
