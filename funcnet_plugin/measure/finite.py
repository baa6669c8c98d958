"""Finds numbers that are not finite where they first appear, and names layer and module.

What is measured of a model is sums over many tokens, so one NaN anywhere becomes NaN everywhere:
linear algebra fails without saying where, and a sort puts NaN scores into an order that means
nothing. So every stage asks here before it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from funcnet_plugin.bars import bar
from funcnet_plugin.errors import NumbersError
from funcnet_plugin.measure.hooks import hooked


def is_finite(tensor: Tensor) -> bool:
    """Tell that there is no NaN and no infinity, as in integers and in what is not in memory."""
    known = tensor.is_floating_point() and tensor.element_size() > 1  # float8: no such operation
    if not known or tensor.numel() == 0 or tensor.device.type == "meta":
        return True
    # both extremes are NaN if anything is; a mask would be a second tensor, and fifty times slower
    low, high = tensor.detach().aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(tensor: Tensor, what: str, dtype: torch.dtype | None = None) -> None:
    """Refuse a tensor that is not finite.

    Args:
        what: the tensor, with its layer: "layer 3: the gradients of model.layers.3.mlp".
        dtype: of what it was computed from, if it is of another.

    Raises:
        NumbersError: it holds NaN or an infinity.
    """
    if not is_finite(tensor):
        dtype = dtype or tensor.dtype
        raise NumbersError(f"{what} hold {_kind(tensor)} in {_name(dtype)}; {_advice(dtype)}.")


def check_finite_weights(model: nn.Module) -> None:
    """Refuse a model one of whose weights is not finite. Each is read once.

    Args:
        model: weights on the meta device, integers and float8 are passed over.

    Raises:
        NumbersError: one is not; the message names it.
    """
    modules = list(model.named_modules())
    for path, module in bar(modules, "checking weights", "module", within=True):
        for key in module._parameters:
            weight = getattr(module, key)  # not from the dictionary: it may have to be onloaded
            if weight is None or is_finite(weight):
                continue
            name = f"{path}.{key}".lstrip(".")
            bad = ~torch.isfinite(weight.detach())
            raise NumbersError(
                f"{_layer(name)}the weight {name} holds {_kind(weight)} ({int(bad.sum())} of "
                f"{weight.numel()} values, the first at {bad.nonzero()[0].tolist()}) in "
                f"{_name(weight.dtype)}; {_other_weights(weight)}."
            )


def not_finite(model: nn.Module, ids: Tensor, mask: Tensor, what: str) -> NumbersError:
    """Make the error for a pass whose result is not finite; run it again to see where that begins.

    Args:
        model: as it was run.
        ids, mask: of the batch, see `passes.model_inputs`.
        what: the result.
    """
    found = _first_output(model, ids, mask)
    if found is None:
        return NumbersError(
            f"{what} is NaN or infinite in {_name(model.dtype)}; load the model in bfloat16 or "
            "float32, and check that it works on this text."
        )
    name, output = found
    return NumbersError(
        f"{_layer(name)}the output of {name or 'the model'} holds {_kind(output)} in "
        f"{_name(output.dtype)}, and so {what} cannot be had; {_advice(output.dtype)}."
    )


class _FoundError(Exception):
    """Ends a pass: a module's output is not finite, and the others are not needed."""


@torch.no_grad()
def _first_output(model: nn.Module, ids: Tensor, mask: Tensor) -> tuple[str, Tensor] | None:
    real = mask.bool()
    found: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and not is_finite(_of_text(first, real)):
                found.append((name, first))
                raise _FoundError

        return hook

    hooks = (module.register_forward_hook(watch(name)) for name, module in model.named_modules())
    with hooked(hooks), suppress(_FoundError):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return found[0] if found else None


def _of_text(output: Tensor, real: Tensor) -> Tensor:
    """Leave padding out, which may be anything, where it can be told."""
    if output.shape[:2] == real.shape:
        return output[real.to(output.device)]
    if output.ndim == 2 and len(output) == real.numel():  # OPT flattens the batch
        return output[real.flatten().to(output.device)]
    return output


def _layer(name: str) -> str:
    number = re.search(r"\.(\d+)(\.|$)", name)
    return f"layer {number[1]}: " if number else ""


def _kind(tensor: Tensor) -> str:
    kinds = (("NaN", torch.isnan), ("infinite values", torch.isinf))
    return " and ".join(name for name, test in kinds if bool(test(tensor.detach()).any()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _advice(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "load the model in bfloat16 or float32, whose range is larger"
    return (
        "check that the model works on this text by itself, in bfloat16 or float32, and take a "
        "sound checkpoint if it does not"
    )


def _other_weights(weight: Tensor) -> str:
    if weight.dtype == torch.float16 and bool(torch.isinf(weight.detach()).any()):
        return (
            "float16 ends at 65504, so convert the model from its original weights to bfloat16 or "
            "float32 instead"
        )
    return "the checkpoint is damaged, so take a sound copy of it, in bfloat16 or float32"
