"""Sees the two kinds of module that hold the weights of an MLP alike.

transformers' Conv1D (GPT-2) is a Linear with its weight transposed.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

KINDS = (nn.Linear, Conv1D)


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
