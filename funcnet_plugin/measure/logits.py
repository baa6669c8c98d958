"""Says how many tokens' logits are taken at a time.

Logits have a number for each token and each entry of the vocabulary, which makes them the largest
tensors of a training step. What is computed of them in float32 is computed for some tokens, and
then for the next.
"""

from __future__ import annotations

from torch import Tensor

# Numbers in float32 at a time: 16 MB stay in a CPU's cache; a GPU is slow by small parts.
_ON_CPU, _ELSEWHERE = 2**22, 2**26


def tokens_at_once(logits: Tensor) -> int:
    """Say how many rows of (tokens, vocabulary) to take at a time, at least one."""
    numbers = _ON_CPU if logits.device.type == "cpu" else _ELSEWHERE
    return max(1, numbers // logits.shape[1])
