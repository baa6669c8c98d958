"""Tells what the widths of a checkpoint allow: block formats, kernels, splits over devices."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from funcnet_plugin.runtimes.checkpoint import Checkpoint

TILE = 128  # columns that matrix kernels of GPUs compute together, at most
_SPLITS = (2, 4, 8, 16)
_K_QUANTS = 256  # numbers of a row that share a block in llama.cpp, as in Q4_K
_BLOCKS = 32  # the same in q8_0 and q4_0
_MARLIN_IN, _MARLIN_OUT = 128, 64


@dataclass(frozen=True)
class Grids:
    """Says what widths allow.

    Attributes:
        common: largest number that divides the width of every layer.
        off_tile: layers whose width is no multiple of `TILE`.
        k_quants, q8_0: whether llama.cpp keeps the rows of every down projection in blocks of 256,
            of 32.
        marlin: whether vLLM's fast kernel for 4-bit weights takes every MLP.
        tensor_parallel: numbers of devices over which heads and neurons split evenly, 1 included.
    """

    common: int
    off_tile: int
    k_quants: bool
    q8_0: bool
    marlin: bool
    tensor_parallel: tuple[int, ...]

    def remarks(self, layers: int) -> list[str]:
        """Say in sentences what the widths cost."""
        said = []
        if self.off_tile:
            said.append(
                f"{self.off_tile} of {layers} layers have widths that are no multiples of {TILE}: "
                "GPU kernels compute the rest of the tile for nothing (align: 128)."
            )
        if not self.q8_0:
            said.append("llama.cpp's q8_0 and q4_0 need widths in multiples of 32 (align: 32).")
        elif not self.k_quants:
            said.append("llama.cpp's K-quants need widths in multiples of 256 (align: 256).")
        if not self.marlin:
            said.append(
                "vLLM's Marlin kernel for 4-bit weights needs widths in multiples of 128 "
                "(align: 128)."
            )
        return said


def grids(checkpoint: Checkpoint) -> Grids:
    """Look at the widths of every layer, and at the heads."""
    widths = checkpoint.widths
    config = checkpoint.model.config
    common = gcd(*widths)
    return Grids(
        common=common,
        off_tile=sum(width % TILE > 0 for width in widths),
        k_quants=common % _K_QUANTS == 0,
        q8_0=common % _BLOCKS == 0,
        marlin=common % _MARLIN_IN == 0 and config.hidden_size % _MARLIN_OUT == 0,
        tensor_parallel=(1, *(n for n in _SPLITS if _splits(checkpoint, config, common, n))),
    )


def _splits(checkpoint: Checkpoint, config: object, common: int, devices: int) -> bool:
    heads = getattr(config, "num_attention_heads", 1)
    shared = getattr(config, "num_key_value_heads", None) or heads
    whole = devices * (checkpoint.group or 1)
    # Fewer key-value heads than devices are kept several times.
    evenly = shared % devices == 0 or devices % shared == 0
    return common % whole == 0 and heads % devices == 0 and evenly
