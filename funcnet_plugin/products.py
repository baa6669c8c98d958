"""Says how exact the float32 products of a GPU are; a CPU's are always full float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(allowed: bool = True) -> Iterator[None]:
    """Let float32 matrix products in this block round their factors to TF32, or forbid it.

    TF32 keeps 10 bits of a factor beside the leading one: all of a bfloat16 number, so products of
    such are exact, and about eight times as many a second on tensor cores. Sums stay float32.

    Args:
        allowed: False for full float32, whatever the process has set.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
