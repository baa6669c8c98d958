"""Checks that an MLP computes what its adapter says: tried on random input, not read from names.

Modules of known names may be put together in another way: a norm over the neurons, a limit on the
gate, the halves of a fused projection the other way round. Cutting neurons would then be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters.projection import in_size, out_size
from funcnet_plugin.adapters.spec import MLPAdapter

_FLOATS = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_SCALES = (0.1, 1.0, 10.0, 100.0)  # a limit on activations shows only when they are large
_TOKENS = 4
_SMALL = {"hidden": 8, "width": 12}


def departure(adapter: MLPAdapter, model: nn.Module, layer: nn.Module) -> str | None:
    """Say how the MLP of a decoder layer departs from the adapter's formula.

    Args:
        model: with weights, on the meta device, or offloaded.
        layer: one of its decoder layers, bound to the adapter.

    Returns:
        None if it does not, or if that cannot be tried: quantized weights, or an MLP that is the
        layer itself and has no weights.
    """
    mlp = layer.get_submodule(adapter.mlp)
    parts = _parts(adapter, mlp)
    weights = [getattr(parts[role], "weight", None) for role in parts if role != "activation"]
    if any(not isinstance(w, Tensor) or w.dtype not in _FLOATS or w.ndim != 2 for w in weights):
        return None
    if any(getattr(module, "quantization_scheme", None) is not None for module in parts.values()):
        return None
    if adapter.mlp and (name := _of_every_neuron(mlp, parts)):
        return f"it also has {name}, with a number for every neuron"
    on_meta = any(weight.device.type == "meta" for weight in weights)
    with torch.no_grad():
        if adapter.mlp == "":
            return None if on_meta else _in_the_model(adapter, model, mlp)
        if on_meta:
            return _of_a_copy(adapter, mlp)
        try:
            return _alone(adapter, mlp)
        except (TypeError, RuntimeError, ValueError, AttributeError):
            # it wants more than its input, or a state that only the model's pass gives it
            return _in_the_model(adapter, model, mlp)


def formula_of(adapter: MLPAdapter) -> str:
    """Write what `departure` compares with, for a message."""
    if adapter.fused:
        return f"{adapter.down}(act(first half of {adapter.up}) * second half)"
    if adapter.gate is None:
        return f"{adapter.down}(act({adapter.up}(x)))"
    return f"{adapter.down}(act({adapter.gate}(x)) * {adapter.up}(x))"


def _parts(adapter: MLPAdapter, mlp: nn.Module) -> dict[str, nn.Module]:
    paths = {role: getattr(adapter, role) for role in ("gate", "up", "down", "activation")}
    return {role: mlp.get_submodule(path) for role, path in paths.items() if path is not None}


def _of_every_neuron(mlp: nn.Module, parts: dict[str, nn.Module]) -> str | None:
    """Name a parameter as long as there are neurons that the formula has no place for.

    It may not show in the output: a scale that is still 1.
    """
    # by module: an offloaded parameter is another tensor each time it is looked at
    inside = {id(module) for part in parts.values() for module in part.modules()}
    width, hidden = in_size(parts["down"]), out_size(parts["down"])
    for name, parameter in mlp.named_parameters():
        owner = mlp.get_submodule(name.rpartition(".")[0])
        if id(owner) not in inside and width in parameter.shape and width != hidden:
            return name
    return None


def _neurons(adapter: MLPAdapter, parts: dict[str, nn.Module], x: Tensor) -> Tensor:
    """Compute what enters the down projection, by the formula."""
    up = parts["up"](x)
    if adapter.fused:
        gate, up = up.chunk(2, dim=-1)
        return parts["activation"](gate) * up
    if adapter.gate is None:
        return parts["activation"](up)
    return parts["activation"](parts["gate"](x)) * up


def _alone(adapter: MLPAdapter, mlp: nn.Module) -> str | None:
    parts = _parts(adapter, mlp)
    weight = parts["up"].weight
    generator = torch.Generator().manual_seed(0)
    shape = (1, _TOKENS, in_size(parts["up"]))
    x = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
    with _evaluating(mlp):
        for scale in _SCALES:
            found = mlp(x * scale)
            expected = parts["down"](_neurons(adapter, parts, x * scale))
            if _differ(found[0] if isinstance(found, tuple) else found, expected):
                return "its output on random input is another"
    return None


class _SeenError(Exception):
    """Says that the MLP was passed: the rest of the model is not needed."""


def _in_the_model(adapter: MLPAdapter, model: nn.Module, mlp: nn.Module) -> str | None:
    """Read during the model's own pass over a few tokens what enters the down projection."""
    parts, seen = _parts(adapter, mlp), {}

    def entered_up(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["x"] = args[0]

    def entered_down(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["neurons"] = args[0]
        raise _SeenError

    hooks = [
        parts["up"].register_forward_pre_hook(entered_up),
        parts["down"].register_forward_pre_hook(entered_down),
    ]
    ids = torch.arange(1, 1 + _TOKENS, device=parts["up"].weight.device)[None]
    try:
        with _evaluating(model):
            model(input_ids=ids, use_cache=False)
    except _SeenError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if "neurons" not in seen:
        return "the model's pass does not go through it"
    with _evaluating(mlp):
        expected = _neurons(adapter, parts, seen["x"])
    return f"what enters {adapter.down} is another" if _differ(seen["neurons"], expected) else None


def _of_a_copy(adapter: MLPAdapter, mlp: nn.Module) -> str | None:
    """Try an MLP without weights as a copy of few neurons with random ones."""
    parts = _parts(adapter, mlp)
    hidden, width = in_size(parts["up"]), in_size(parts["down"])
    small = {2 * width: 2 * _SMALL["width"], width: _SMALL["width"], hidden: _SMALL["hidden"]}
    if hidden in (width, 2 * width):  # one size may mean both, so they must stay alike
        small = {2 * width: 2 * _SMALL["width"], width: _SMALL["width"]}
    if out_size(parts["down"]) != hidden:
        return None  # nothing to go by: the run with weights decides
    try:
        return _alone(adapter, _shrunk(mlp, small))
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return None  # it minds its sizes: the run with weights decides


def _shrunk(mlp: nn.Module, sizes: dict[int, int]) -> nn.Module:
    """Copy it, on the CPU, float32, random; every size that is a key of `sizes` is its value."""
    small = copy.deepcopy(mlp)
    generator = torch.Generator().manual_seed(1)
    for module in small.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = [sizes.get(n, n) for n in parameter.shape]
            setattr(module, name, nn.Parameter(torch.randn(shape, generator=generator)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.ones([sizes.get(n, n) for n in buffer.shape]))
        for name, value in list(vars(module).items()):
            if isinstance(value, int) and not isinstance(value, bool) and value in sizes:
                setattr(module, name, sizes[value])
            elif name == "normalized_shape":
                module.normalized_shape = tuple(sizes.get(n, n) for n in value)
    return small


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off meanwhile; every part gets its own mode back."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _differ(found: Tensor, expected: Tensor) -> bool:
    if found.numel() != expected.numel():
        return True
    tolerance = _FLOATS[expected.dtype]
    found, expected = found.double().reshape(expected.shape), expected.double()
    known = found.isfinite() | expected.isfinite()  # float16 may overflow, but then in both
    gap = torch.where(known, found - expected, 0.0).abs().nan_to_num(torch.inf).amax()
    scale = torch.where(expected.isfinite(), expected, 0.0).abs().amax()
    return bool(gap > tolerance * scale)
