"""Lets a model run on a device that has no room for all of it: weights come when they are needed.

llm-compressor's pipelines do the same, by compressed_tensors: a module's parameters are fetched
whenever something reads them, and let go afterwards. A backward pass would hold on to all that the
forward pass has read, so each decoder layer is computed once more in it, which fetches its weights
again (checkpointing: Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from compressed_tensors.offload import get_execution_device, offload_module
from compressed_tensors.offload.cache import OffloadCache
from compressed_tensors.offload.module import remove_module_offload
from torch import nn
from torch.utils.checkpoint import checkpoint


def device_of(model: nn.Module) -> torch.device:
    """Say where a model is run; no weight is moved for it."""
    find = getattr(model, "get_input_embeddings", None)
    return torch.device(get_execution_device(model if find is None else find()))


def waits(model: nn.Module) -> bool:
    """Tell whether all of a model lies on the CPU or on disk, and would be run on the CPU."""
    return all(
        torch.device(get_execution_device(module, torch.device("cpu"))).type == "cpu"
        for module in model.modules()
        if module._parameters
    )


def is_sent(module: nn.Module) -> bool:
    """Tell whether weights inside of a module come from elsewhere whenever they are read."""
    caches = (m._parameters for m in module.modules() if isinstance(m._parameters, OffloadCache))
    return any(str(c.onload_device) != str(c.offload_device) for c in caches if len(c))


@contextmanager
def sent_as_needed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a model on a device while its weights stay where they are.

    Args:
        model: all on one device, or offloaded already; comes back as it was.
        device: that each module's weights are sent to when it is called.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module._parameters, OffloadCache):
                for cache in (module._parameters, module._buffers):
                    undo.callback(setattr, cache, "onload_device", cache.onload_device)
                    cache.onload_device = device
                continue
            own = vars(module).get("forward")
            tensors = (*module._parameters.values(), *module._buffers.values())
            home = next((t.device for t in tensors if t is not None), torch.device("cpu"))
            offload_module(module, device, home)
            undo.callback(_take_back, module, own)
        yield


def _take_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    remove_module_offload(module)
    del module.forward
    if forward is not None:
        module.forward = forward


@contextmanager
def computed_again(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Keep nothing of the insides of decoder layers for a backward pass, while this is open.

    Args:
        layer: one of them.
    """
    with ExitStack() as undo:
        for other in _siblings(model, layer):
            own = vars(other).get("forward")  # offloading may have put one there
            again = partial(checkpoint, other.forward, use_reentrant=False)
            other.forward = partial(again, preserve_rng_state=False)  # nothing is drawn
            undo.callback(_put_back, other, own)
        yield


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _siblings(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and any(child is layer for child in module):
            return list(module)
    return [layer]
