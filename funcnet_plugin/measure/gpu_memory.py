"""Says what room a GPU has."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device | None = None) -> int:
    """Count the free bytes of a GPU, of the current one if not said."""
    torch.cuda.empty_cache()  # what earlier passes left is free, but does not look so
    return torch.cuda.mem_get_info(device)[0]
