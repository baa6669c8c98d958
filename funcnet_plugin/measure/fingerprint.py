"""Tells models apart, and the weights of one layer, by a sample of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.bars import bar

_SAMPLED = 1000  # weights of every parameter


def fingerprint_model(model: nn.Module) -> str:
    """Tell models apart by their config and a thousand weights of every parameter.

    The weights stay where they are, but for one at a time.
    """
    digest = hashlib.sha256(json.dumps(_config_of(model), sort_keys=True, default=str).encode())
    modules = list(model.named_modules())
    for name, module in bar(modules, "fingerprint of the model", "module", within=True):
        for key in module._parameters:
            weight = getattr(module, key)  # not from the dictionary: it may have to be onloaded
            if weight is not None:
                digest.update(f"{name}.{key} {tuple(weight.shape)} {weight.dtype}".encode())
                digest.update(_sample(weight))
    return digest.hexdigest()


def fingerprint_unit(unit: Unit) -> str:
    """Tell the projections of a unit apart, by a thousand weights of each.

    They are rounded to bfloat16, so a model that was loaded so is the same.
    """
    digest = hashlib.sha256()
    for weight in unit.weights:
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(_sample(weight.detach().to(torch.bfloat16)))
    return digest.hexdigest()


def _sample(weight: Tensor) -> bytes:
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLED)].float().cpu().numpy().tobytes()


def _config_of(model: nn.Module) -> dict[str, Any]:
    """Give a model's config without what does not change what the model computes."""
    config = getattr(model, "config", None)
    facts = {} if config is None else config.to_dict()
    elsewhere = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
    return {key: value for key, value in facts.items() if key not in elsewhere}
