"""Builds decoder layers of different widths in plain transformers.

Transformers has the config schema (`per_layer_config`), but its modelling code reads the width from
the shared config and refuses when layers differ. Each decoder layer is therefore built from its own
layer's config, and then given the shared one back: transformers changes that one later (attention
implementation, dtype) and every module must see it.

Imports nothing but the standard library: it runs while transformers is being imported, and it is
the modelling file of checkpoints that bring their code along (`export.remote_code`).
"""

from __future__ import annotations

import inspect
import sys
from functools import wraps
from typing import Any


def enable(base: type) -> None:
    """Let transformers build every model that has the `functional_network` block in its config.

    Args:
        base: transformers' `PreTrainedModel`; its `__init__` is wrapped, once.

    Other models run one `hasattr` more, nothing else.
    """
    init = base.__init__
    if getattr(init, "_funcnet", False):
        return

    @wraps(init)
    def __init__(self, config, *args, **kwargs):  # noqa: N807
        init(self, config, *args, **kwargs)
        prepare(type(self), config)

    __init__._funcnet = True
    base.__init__ = __init__


def prepare(model_class: type, config: Any) -> None:
    """Prepare the classes of a model that is about to create its layers, for per-layer widths.

    Raises:
        ValueError: the model class does not tell which class its decoder layers have.
    """
    if not is_ours(config):
        return
    names = getattr(model_class, "_no_split_modules", None) or ()
    modules = {base.__module__: sys.modules[base.__module__] for base in model_class.__mro__}
    classes = [getattr(m, name) for m in modules.values() for name in names if hasattr(m, name)]
    if not classes:
        raise ValueError(
            f"{model_class.__name__} does not name its decoder layer class, so a checkpoint with "
            "per-layer widths cannot be built; export it with --export padded."
        )
    for layer_class in classes:
        _patch(layer_class)


def is_ours(config: Any) -> bool:
    """Say whether a transformers config is of a checkpoint of ours with per-layer widths."""
    return hasattr(config, "functional_network") and getattr(config, "is_heterogeneous", False)


def _patch(layer_class: type) -> None:
    init = layer_class.__init__
    if getattr(init, "_funcnet", False):
        return
    signature = inspect.signature(init)

    @wraps(init)
    def __init__(self, *args, **kwargs):  # noqa: N807
        bound = signature.bind(self, *args, **kwargs)
        shared, index = bound.arguments.get("config"), bound.arguments.get("layer_idx")
        if index is None or not is_ours(shared):
            init(self, *args, **kwargs)
            return
        own = shared.per_layer_config[index]
        bound.arguments["config"] = own
        init(*bound.args, **bound.kwargs)
        for module in self.modules():
            if module.__dict__.get("config") is own:
                module.config = shared

    __init__._funcnet = True
    layer_class.__init__ = __init__
