"""Runs a whole model over the calibration data, outside llm-compressor's pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from compressed_tensors.offload import OffloadCache, disable_offloading, disable_onloading
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.bars import bar
from funcnet_plugin.measure.free_memory import free_bytes
from funcnet_plugin.measure.offloading import device_of, is_sent, sent_as_needed, waits

NO_TARGET = -100  # a label that torch's and transformers' losses leave out
# Of the weights' size: they and what else a pass needs, forward alone, and with a way back or with
# modules that are exchanged.
_FORWARD, _MORE = 1.15, 1.5


@contextmanager
def on_gpu(
    model: nn.Module, besides: int = 0, *, whole: bool = False, backward: bool = False
) -> Iterator[None]:
    """Run a model that waits on the CPU on the GPU meanwhile.

    llm-compressor leaves a model on the CPU, or on disk, until it calibrates layer by layer. Where
    the GPU has no room for all of it, each weight is sent there whenever it is needed; where it
    has, offloaded weights stay there once they were needed. Nothing happens without CUDA, or to a
    model that lies there already.

    Args:
        besides: bytes that the pass needs there for what it measures.
        whole: whether it must be there as a whole, because its modules are exchanged; where it does
            not fit, or is offloaded, it is run on the CPU then.
        backward: whether the pass also goes back.
    """
    if not torch.cuda.is_available():
        yield
        return
    if not waits(model):  # its weights may do so all the same, as an earlier run left them
        with kept_where_it_runs(model, besides, backward=backward):
            yield
        return
    needed = _needed(model, besides, backward or whole)
    free = free_bytes(torch.device("cuda"))
    stays = any(isinstance(module._parameters, OffloadCache) for module in model.modules())
    if stays or needed > free:
        if needed > free:
            how = (
                "it runs on the CPU, which may take long"
                if whole
                else "weights are sent there layer by layer, again for every batch"
            )
            logger.warning(
                f"the GPU has {free / 2**30:.1f} GB free and this pass through the whole model "
                f"needs about {needed / 2**30:.1f} GB; {how}."
            )
        elif whole:
            logger.warning(
                "the model's weights are offloaded, and this pass exchanges its modules, so it "
                "runs on the CPU, which may take long; load the model without offloading."
            )
        with ExitStack() as stack:
            if not whole:
                stack.enter_context(sent_as_needed(model, torch.device("cuda")))
                stack.enter_context(kept_where_it_runs(model, besides, backward=backward))
            yield
        torch.cuda.empty_cache()
        return
    try:
        model.to("cuda")
        yield
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()


@contextmanager
def kept_where_it_runs(
    model: nn.Module, besides: int = 0, *, backward: bool = False
) -> Iterator[bool]:
    """Keep weights that were sent where the model runs, for many passes in a row, if they fit.

    Args:
        besides, backward: see `on_gpu`.

    Yields:
        whether weights still come one by one whenever they are needed.
    """
    if not is_sent(model):
        yield False
    elif _needed(model, besides, backward) < free_bytes(device_of(model)):
        with disable_offloading():
            yield False
    else:
        yield True


@contextmanager
def layer_by_layer(model: nn.Module) -> Iterator[None]:
    """Run a model that waits on the CPU on the GPU, in a pass that takes all text layer by layer.

    Args:
        model: see `on_gpu`; its weights stay where they are.
    """
    if torch.cuda.is_available() and waits(model):
        with sent_as_needed(model, torch.device("cuda")):
            yield
        torch.cuda.empty_cache()
    else:
        yield


@contextmanager
def of_no_weight(model: nn.Module) -> Iterator[None]:
    """Let a backward pass leave no gradient in any weight; what asked for one does so again."""
    with disable_onloading():  # what is fetched asks for as much as what waits
        before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _needed(model: nn.Module, besides: int, more: bool) -> float:
    with disable_onloading():
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return (_MORE if more else _FORWARD) * weights + besides


def model_inputs(
    model: nn.Module, calibration: Iterable[dict[str, Any]], title: str = ""
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give what the model is called with, batch after batch, on its device.

    Args:
        title: of a progress bar, for who runs the model on each; none without.

    Yields:
        ids, mask, labels, each (batch, length) int64; mask is 1 where a token is no padding, and
        labels are NO_TARGET at padding, and where a left-padded text begins: nothing real
        predicts it.
    """
    device = device_of(model)
    for batch in bar(calibration, title):
        ids = batch["input_ids"].to(device)
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids)
        labels = ids.masked_fill(mask == 0, NO_TARGET)
        labels[:, 1:].masked_fill_(mask[:, :-1] == 0, NO_TARGET)
        yield ids, mask, labels
