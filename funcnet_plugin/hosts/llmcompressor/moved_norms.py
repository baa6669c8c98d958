"""Lets norms that llm-compressor replaced find back after layers were dropped.

For models whose norms multiply by ``1 + weight`` (Gemma) it puts others in their place during a
run, and at its end puts the old ones back by the names that they had. Where layers were dropped in
between, these names are of other layers by then, or of none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmcompressor.modeling.offset_norm import NormCalibrationModule
from torch import nn


def follow_moved_layers(model: nn.Module, path: str, keep: Sequence[int]) -> Callable[[], None]:
    """Make a model follow its layers to their new places; call it before layers are dropped.

    Args:
        model: what llm-compressor calls `set_submodule` of when the run ends.
        path: of the list of decoder layers.
        keep: indices of those that stay.

    Returns:
        ends this; call it when the run has ended.
    """
    names = [n for n, m in model.named_modules() if isinstance(m, NormCalibrationModule)]
    new_number = {old: new for new, old in enumerate(keep)}
    moved: dict[str, str | None] = {}  # None: dropped
    for name in names:
        if name.startswith(f"{path}."):
            number, _, rest = name.removeprefix(f"{path}.").partition(".")
            new = new_number.get(int(number))
            moved[name] = None if new is None else f"{path}.{new}.{rest}"
    inner = model.set_submodule

    def set_submodule(target: str, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        target = moved.get(target, target)
        if target is not None:
            inner(target, module, *args, **kwargs)

    def end() -> None:
        model.__dict__.pop("set_submodule", None)

    if moved:
        model.set_submodule = set_submodule
    return end
