"""Packs a matrix of all networks so that a page of thousands stays small; the page unpacks it."""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor

_STEPS = 127  # of int8


def packed(matrix: Tensor) -> dict[str, float | str]:
    """Pack what stands above the diagonal of a symmetric matrix.

    Args:
        matrix: (n, n), from -1 to 1.

    Returns:
        `scale`, the largest size; `values`, base64 of deflated int8, row after row: 127 stands for
        the scale.
    """
    n = len(matrix)
    upper = matrix[tuple(torch.triu_indices(n, n, offset=1))].nan_to_num()
    scale = float(upper.abs().max()) if len(upper) else 0.0
    steps = (upper * (_STEPS / (scale or 1.0))).round().to(torch.int8)
    data = zlib.compress(steps.numpy().tobytes(), level=9)
    return {"scale": round(scale, 4), "values": base64.b64encode(data).decode()}
