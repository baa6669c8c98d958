"""Measures how much each decoder layer is needed, and takes some out.

Block influence is ShortGPT's (arXiv 2403.03853), perplexity Shortened LLaMA's (arXiv 2402.02834).
Both papers drop the layers of the lowest scores at once and repair nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.bars import bar
from funcnet_plugin.errors import AdapterError, CalibrationError
from funcnet_plugin.measure.finite import not_finite
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.passes import NO_TARGET, model_inputs
from funcnet_plugin.measure.text import Text
from funcnet_plugin.measure.token_loss import text_tokens, token_loss

# Settings of a transformers config that list one entry per decoder layer.
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "attention_layers", "attention_types")


@torch.no_grad()
def block_influence(model: nn.Module, layers: Sequence[nn.Module], text: Text) -> list[float]:
    """Measure ``1 - E[x_i' x_{i+1} / (|x_i| |x_{i+1}|)]`` of every layer; padding is left out.

    Args:
        model: whole, in memory.
        layers: its decoder layers; x_i goes into layer i.
        text: the calibration data.
    """
    similarity = [0.0] * len(layers)
    mask = torch.empty(0)

    def watch(i: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before, after = _hidden(args, kwargs).double(), _first(output).double()
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1, eps=1e-12)
            similarity[i] += float(cosine[mask.bool()].sum())

        return hook

    hooks = (
        layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)
    )
    n_tokens = 0
    with hooked(hooks):
        for ids, mask, _ in model_inputs(model, text.batches, "block influence"):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            if not math.isfinite(sum(similarity)):
                raise not_finite(model, ids, mask, "block influence")
            n_tokens += int(mask.sum())
    if n_tokens == 0:
        raise CalibrationError("the calibration data holds nothing but padding; give text.")
    return [1.0 - total / n_tokens for total in similarity]


@torch.no_grad()
def perplexity_without(model: nn.Module, layers: Sequence[nn.Module], text: Text) -> list[float]:
    """Measure the perplexity of the calibration data when one layer at a time is left out.

    Args as `block_influence`; one pass over the data per layer.
    """
    found = []
    for layer in bar(layers, "perplexity without each layer", "layer"):
        with hooked([layer.register_forward_hook(_pass_through, with_kwargs=True)]):
            found.append(_perplexity(model, text))
    return found


def _perplexity(model: nn.Module, text: Text) -> float:
    total, n_tokens = 0.0, 0
    for ids, mask, labels in model_inputs(model, text.batches):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        targets = text_tokens(labels).flatten()
        total += float(token_loss(logits.flatten(0, 1), targets))
        n_tokens += int((targets != NO_TARGET).sum())
        if math.isnan(total):
            raise not_finite(model, ids, mask, "the perplexity without a layer")
    if n_tokens == 0:
        raise CalibrationError(
            "no calibration sample has a token after its first, so there is no perplexity; give "
            "longer samples."
        )
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
    _drop_from_config(model.config, n, keep)


def _drop_from_config(config: Any, n: int, keep: Sequence[int]) -> None:
    """Tell the config of `n` layers which are left."""
    overrides = config.to_dict().get("per_layer_config")
    if overrides:
        config.per_layer_config = None
    for key in PER_LAYER_KEYS:
        entries = getattr(config, key, None)
        if isinstance(entries, list) and len(entries) == n:
            setattr(config, key, [entries[i] for i in keep])
    config.num_hidden_layers = len(keep)
    if overrides:
        by_layer = {int(i): layer for i, layer in overrides.items()}
        config.per_layer_config = {
            new: by_layer[old] for new, old in enumerate(keep) if old in by_layer
        }


def check_layers_may_move(model: nn.Module, path: str) -> None:
    """Refuse layers that are other ones under another number when the checkpoint is loaded.

    Seen on two copies without weights: one of the model, one without its first layer, so that every
    other one moves by one.

    Args:
        path: see `drop_layers`.

    Raises:
        AdapterError: what a layer computes depends on its number, as an attention's scale may, or
            on that of another one, whose keys and values it shares.
    """
    architecture, n = type(model).__name__, len(model.get_submodule(path))
    if n == 1:
        return
    shorter = copy.deepcopy(model.config)
    _drop_from_config(shorter, n, range(1, n))
    try:
        with torch.device("meta"):
            whole = type(model)(copy.deepcopy(model.config)).get_submodule(path)
            moved = type(model)(shorter).get_submodule(path)
    except Exception as error:  # of anybody's modelling code
        raise AdapterError(
            f"{architecture} cannot be built without one of its layers "
            f"({type(error).__name__}: {' '.join(str(error).split())[:150]}); prune its width."
        ) from error
    for i, (old, new) in enumerate(zip(list(whole)[1:], moved, strict=True)):
        what = _difference(old, new)
        if what is not None:
            raise AdapterError(
                f"layers of {architecture} cannot be dropped: {what} of layer {i + 1} depends on "
                "the layer's number, so the layers behind a dropped one would compute something "
                "else once they are loaded; prune its width."
            )


def _difference(old: nn.Module, new: nn.Module) -> str | None:
    """Find a setting in which two layers differ, but for their numbers."""
    others = dict(new.named_modules())
    for name, module in old.named_modules():
        theirs = _settings(others.get(name))
        ours = _settings(module)
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return f"{name}.{key}" if name else key
    return None


def _settings(module: nn.Module | None) -> dict[str, Any]:
    """Find what a module was made with: plain values and the shapes of its parameters."""
    if module is None:
        return {}
    plain = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | list | tuple | None)
        and not key.startswith("_")
        and key not in ("training", "layer_idx")
    }
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    return plain | shapes | {"class": type(module).__name__}
