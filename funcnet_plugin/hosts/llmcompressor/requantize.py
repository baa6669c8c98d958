"""Keeps a quantization that follows pruning in the same recipe aware of the new shapes."""

from __future__ import annotations

from torch import nn

_STATE = ("quantization_status", "quantization_enabled")


def renew_quantization(linear: nn.Module) -> None:
    """Make scales and zero points again, in the shape the module has now.

    llm-compressor attaches them to every targeted module before any calibration, so before neurons
    are cut. Without this the run finishes and saving fails on the old shapes. Modules that no
    quantization modifier targets are left alone.
    """
    scheme = getattr(linear, "quantization_scheme", None)
    if scheme is None:
        return
    from compressed_tensors.quantization import initialize_module_for_quantization

    # Initialising marks the module as quantized from now on; it is, but only in its own turn.
    state = {name: getattr(linear, name) for name in _STATE if hasattr(linear, name)}
    initialize_module_for_quantization(linear, scheme)
    for name, value in state.items():
        setattr(linear, name, value)
