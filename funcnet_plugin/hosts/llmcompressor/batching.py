"""Lets our modifiers read several calibration samples at once where the user left that open.

llm-compressor takes samples one by one if it is not told otherwise, and its own collators would cut
a batch to its shortest sample. What a modifier of ours keeps does not depend on the batches, so it
gets larger ones. The loader itself stays as it is: other modifiers of the recipe read it as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Sized
from functools import wraps
from types import ModuleType
from typing import Any

import torch

from funcnet_plugin.errors import CalibrationError


class Unset(int):
    """Marks the host's default of `batch_size`, to tell it from the same number of a user."""


def mark_default(entry: ModuleType) -> None:
    """Make the default of `oneshot`'s batch_size one that can be told from a given one.

    Args:
        entry: `llmcompressor.entrypoints.oneshot`.
    """
    function = entry.oneshot
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    ]
    defaults = dict(zip(names, function.__defaults__ or (), strict=True))
    if "batch_size" in defaults:
        defaults["batch_size"] = Unset(defaults["batch_size"])
        function.__defaults__ = tuple(defaults.values())


def left_to_us(given: Any) -> bool:
    """Tell whether a call of `oneshot` says nothing about batches.

    Args:
        given: llm-compressor's arguments for the dataset, their batch_size marked where it was not
            given.
    """
    from torch.utils.data import DataLoader

    from funcnet_plugin.text.batches import SingleSamples

    if given.use_loss_mask:
        return False  # a mask of their own for every batch
    if isinstance(given.dataset, DataLoader):
        return isinstance(given.dataset, SingleSamples)
    return isinstance(given.batch_size, Unset)


def read_in_our_batches() -> None:
    """Wrap llm-compressor's sequential pipeline; calling twice is harmless.

    A modifier that is calibrated by itself and has `calibration_batches` gets these.
    """
    from llmcompressor.core import active_session
    from llmcompressor.pipelines.sequential.pipeline import SequentialPipeline

    run = SequentialPipeline.__call__
    if getattr(run, "_funcnet", False):
        return

    @wraps(run)
    def run_in_batches(model: Any, dataloader: Any, dataset_args: Any) -> None:
        modifiers = active_session().lifecycle.recipe.modifiers
        ours = modifiers[0] if len(modifiers) == 1 else None
        if not hasattr(ours, "calibration_batches"):
            run(model, dataloader, dataset_args)
            return
        batches = ours.calibration_batches(model) or dataloader
        try:
            run(model, batches, dataset_args)
        except torch.OutOfMemoryError as error:
            raise CalibrationError(_smaller(batches)) from error

    run_in_batches._funcnet = True
    SequentialPipeline.__call__ = staticmethod(run_in_batches)


def _smaller(batches: Sized) -> str:
    """Say which batch size to give where one was too large."""
    samples, length = max(
        (tuple(batch["input_ids"].shape[:2]) for batch in batches if "input_ids" in batch),
        key=lambda shape: shape[0] * shape[1],
        default=(1, 0),
    )
    if samples > 1:
        return (
            f"calibration ran out of memory with {samples} samples of {length} tokens at once; "
            f"give batch_size={samples // 2} (--batch-size {samples // 2}), and the model afresh."
        )
    return (
        f"calibration ran out of memory with one sample of {length} tokens; give shorter samples "
        "(max_seq_length=, --window), and the model afresh."
    )
