"""Whole decoder layers: how much each is needed, and taking some out.

Block influence is ShortGPT's (arXiv 2403.03853), perplexity Shortened LLaMA's (arXiv 2402.02834).
Both papers drop the layers of the lowest scores at once and repair nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.bars import bar
from funcnet_plugin.pruning.whole_model import model_inputs

# Settings of a transformers config that list one entry per decoder layer.
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "attention_layers", "attention_types")


@torch.no_grad()
def block_influence(
    model: nn.Module, layers: Sequence[nn.Module], calibration: Iterable[dict[str, Any]]
) -> list[float]:
    """``1 - E[x_i' x_{i+1} / (|x_i| |x_{i+1}|)]`` of every layer, over all tokens but padding.

    Args:
        model: whole, in memory.
        layers: its decoder layers; x_i goes into layer i.
        calibration: batches as the run reads them.
    """
    similarity = [0.0] * len(layers)
    mask = torch.empty(0)

    def watch(i: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before, after = _hidden(args, kwargs).double(), _first(output).double()
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1, eps=1e-12)
            similarity[i] += float(cosine[mask.bool()].sum())

        return hook

    hooks = [
        layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    n_tokens = 0
    try:
        for ids, mask, _ in model_inputs(model, calibration, "block influence"):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            n_tokens += int(mask.sum())
    finally:
        for hook in hooks:
            hook.remove()
    return [1.0 - total / n_tokens for total in similarity]


@torch.no_grad()
def perplexity_without(
    model: nn.Module, layers: Sequence[nn.Module], calibration: Iterable[dict[str, Any]]
) -> list[float]:
    """Perplexity of the calibration data when one layer at a time is left out.

    Args as `block_influence`; one pass over the data per layer.
    """
    found = []
    for layer in bar(layers, "perplexity without each layer", "layer"):
        hook = layer.register_forward_hook(_pass_through, with_kwargs=True)
        try:
            found.append(_perplexity(model, calibration))
        finally:
            hook.remove()
    return found


def _perplexity(model: nn.Module, calibration: Iterable[dict[str, Any]]) -> float:
    total, n_tokens = 0.0, 0
    for ids, mask, labels in model_inputs(model, calibration):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        targets = labels[:, 1:].flatten()
        total += float(
            nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum"
            )
        )
        n_tokens += int((targets != -100).sum())
    return math.exp(min(total / n_tokens, 700.0))  # a model without a vital layer may be this bad


def _pass_through(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    hidden = _hidden(args, kwargs)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _hidden(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def drop_layers(model: nn.Module, path: str, keep: Sequence[int]) -> None:
    """Take decoder layers out, and tell the config.

    Args:
        model: changed in place.
        path: of the list of decoder layers, `model.layers` for instance.
        keep: indices of those that stay, ascending.
    """
    parent, _, name = path.rpartition(".")
    layers = model.get_submodule(path)
    n = len(layers)
    kept = nn.ModuleList(layers[i] for i in keep)
    setattr(model.get_submodule(parent), name, kept)
    for new, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new  # where the cache keeps this layer's keys and values
    config = model.config
    overrides = config.to_dict().get("per_layer_config")
    if overrides:
        config.per_layer_config = None
    for key in PER_LAYER_KEYS:
        entries = getattr(config, key, None)
        if isinstance(entries, list) and len(entries) == n:
            setattr(config, key, [entries[i] for i in keep])
    config.num_hidden_layers = len(kept)
    if overrides:
        by_layer = {int(i): layer for i, layer in overrides.items()}
        config.per_layer_config = {
            new: by_layer[old] for new, old in enumerate(keep) if old in by_layer
        }
