"""Counts the memory and the multiplications of a decomposition, to plan a run with."""

from __future__ import annotations

from funcnet_plugin.ica.columns import part_bytes
from funcnet_plugin.ica.krylov import PASSES
from funcnet_plugin.ica.signals import OVERSAMPLING, takes_second_moment


def reduction_bytes(n_tokens: int, n_signals: int, n_components: int) -> int:
    """Count the bytes that `reduce_time` takes at its peak, the signals themselves left out.

    Args:
        n_tokens, n_signals: shape of the signals.
        n_components: k.
    """
    T, V, k = n_tokens, n_signals, n_components
    result = 2 * 8 * k * V  # directions, and what they make of the signals
    if not takes_second_moment(T, V, k):
        width = k + OVERSAMPLING
        space, courses = 4 * V * width, 4 * T * width  # of one pass
        # a block is made orthonormal in float64: with its copy, and what is solved for
        growing = (PASSES + 1) * space + 3 * 2 * space
        joining = 2 * PASSES * (space + courses) + result
        return part_bytes(T, V) + max(growing, joining)
    if V <= T:
        return part_bytes(T, V) + 5 * 8 * V * V
    # standardised in parts, which are joined; then turned in float64
    return 12 * T * V + result + 5 * 8 * T * T


def whitening_bytes(n_signals: int, n_components: int) -> int:
    """Count the bytes of `whiten`: the reduced signals, centred, and white, all float64."""
    return 3 * 8 * n_components * n_signals


def reduction_operations(n_tokens: int, n_signals: int, n_components: int) -> float:
    """Count the multiplications and additions of `reduce_time`."""
    T, V, k = n_tokens, n_signals, n_components
    if takes_second_moment(T, V, k):
        return 2.0 * T * V * min(T, V) + 20.0 * min(T, V) ** 3
    return 2.0 * T * V * (k + OVERSAMPLING) * (2 * PASSES + 1)
