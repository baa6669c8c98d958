"""Counts the memory and the multiplications of a decomposition, to plan a run with."""

from __future__ import annotations

from funcnet_plugin.ica.signals import _BLOCK, _OVERSAMPLING, _PASSES


def reduction_bytes(n_tokens: int, n_signals: int, n_components: int) -> int:
    """Count the bytes that `reduce_time` takes at its peak, the signals themselves left out.

    Args:
        n_tokens, n_signals: shape of the signals.
        n_components: k.
    """
    T, V, width = n_tokens, n_signals, n_components + _OVERSAMPLING
    rows = 3 * 4 * min(T, _BLOCK) * V  # one block: joined, centred, and the result
    if min(T, V) > 3 * _PASSES * width:
        # the space in float32 and joined, then in float64 with what its QR copies
        space = 4 * V * width * _PASSES
        return rows + 8 * space + 4 * T * width * _PASSES
    if V <= T:
        return rows + 5 * 8 * V * V
    return 20 * T * V + 5 * 8 * T * T


def whitening_bytes(n_signals: int, n_components: int) -> int:
    """Count the bytes of `whiten`: the reduced signals, centred, and white, all float64."""
    return 3 * 8 * n_components * n_signals


def reduction_operations(n_tokens: int, n_signals: int, n_components: int) -> float:
    """Count the multiplications and additions of `reduce_time`."""
    T, V, width = n_tokens, n_signals, n_components + _OVERSAMPLING
    if min(T, V) > 3 * _PASSES * width:
        return 2.0 * T * V * width * (2 * _PASSES + _PASSES)
    return 2.0 * T * V * min(T, V) + 20.0 * min(T, V) ** 3
