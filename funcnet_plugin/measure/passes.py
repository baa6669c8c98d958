"""Runs a whole model over the calibration data, outside llm-compressor's pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.offload import OffloadCache
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.bars import bar
from funcnet_plugin.measure.gpu_memory import free_bytes

_ROOM = 1.5  # of the weights' size: what else a pass through the model needs


@contextmanager
def on_gpu(model: nn.Module, besides: int = 0) -> Iterator[None]:
    """Bring a model that waits on the CPU to the GPU, and back afterwards.

    llm-compressor leaves a model on the CPU until it calibrates layer by layer. Nothing happens
    without CUDA, to a model that is placed already, or where the GPU has no room for all of it.

    Args:
        besides: bytes that the pass needs there for what it measures.
    """
    parameters = list(model.parameters())
    placed = any(isinstance(m._parameters, OffloadCache) for m in model.modules()) or any(
        p.device.type != "cpu" for p in parameters
    )
    if placed or not torch.cuda.is_available():
        yield
        return
    needed = _ROOM * sum(p.numel() * p.element_size() for p in parameters) + besides
    free = free_bytes()
    if needed > free:
        logger.warning(
            f"the GPU has {free / 2**30:.1f} GB free and this pass through the whole model needs "
            f"about {needed / 2**30:.1f} GB; it runs on the CPU, which may take long."
        )
        yield
        return
    try:
        model.to("cuda")
        yield
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()


def model_inputs(
    model: nn.Module, calibration: Iterable[dict[str, Any]], title: str = ""
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give what the model is called with, batch after batch, on its device.

    Args:
        title: of a progress bar, for who runs the model on each; none without.

    Yields:
        ids, mask, labels, each (batch, length) int64; mask is 1 where a token is no padding, and
        labels are -100 at padding, and where a left-padded text begins: nothing real predicts it.
    """
    for batch in bar(calibration, title):
        ids = batch["input_ids"].to(model.device)
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, 1:].masked_fill_(mask[:, :-1] == 0, -100)
        yield ids, mask, labels
