"""Decoder layers of different widths in plain transformers.

Transformers has the config schema (`per_layer_config`), but its modelling code reads the width from
the shared config and refuses when layers differ. Each decoder layer is therefore built from its own
layer's config, and then given the shared one back: transformers changes that one later (attention
implementation, dtype) and every module must see it.
"""

from __future__ import annotations

import inspect
import sys
from functools import wraps

from transformers import PreTrainedConfig, PreTrainedModel

from funcnet_plugin.errors import CheckpointError


def prepare(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Called before a model creates its layers; does nothing for uniform widths.

    Raises:
        CheckpointError: the model class does not tell which class its decoder layers have.
    """
    if not _is_ours(config):
        return
    module = sys.modules[model_class.__module__]
    names = getattr(model_class, "_no_split_modules", None) or ()
    classes = [getattr(module, name) for name in names if hasattr(module, name)]
    if not classes:
        raise CheckpointError(
            f"{model_class.__name__} does not name its decoder layer class, so a checkpoint with "
            "per-layer widths cannot be built; export it with --export padded."
        )
    for layer_class in classes:
        _patch(layer_class)


def _is_ours(config: PreTrainedConfig | None) -> bool:
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
        if index is None or not _is_ours(shared):
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
