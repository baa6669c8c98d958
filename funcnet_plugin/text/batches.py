"""Reads the calibration batches of a run, once, and refuses those that no pass can use."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from funcnet_plugin.bars import bar
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.text import Text

_IDS, _MASK = "input_ids", "attention_mask"


class SingleSamples(DataLoader):
    """Loads samples one by one, and leaves to a run how many it takes at once."""


def read_calibration(calibration: Any, model: nn.Module, *, may_join: bool = False) -> Text:
    """Read all of the calibration data, and look at what the model will be called with.

    Args:
        calibration: the DataLoader of the run; it gives the same batches afterwards as it would
            have, in the same order.
        model: of the run.
        may_join: whether batches may be put together; they are not where a model is called with
            more than tokens and a mask of them.

    Returns:
        the text, in memory; without batches where a model is called with embeddings.

    Raises:
        CalibrationError: a batch that is none, or a sample without text.
    """
    check_repeatable(calibration)
    known = model.get_input_embeddings().num_embeddings
    if len(calibration) == 0:
        raise CalibrationError(
            "the calibration data gives no batch: the DataLoader's drop_last leaves out those that "
            "are not full; give more samples or a smaller batch_size."
        )
    batches: list[Mapping[str, Any]] = []
    n_samples = 0
    with _undisturbed(calibration):
        for number, batch in enumerate(bar(calibration, "reading calibration data", within=True)):
            where = f"batch {number} of the calibration data"
            if not isinstance(batch, Mapping):
                raise CalibrationError(
                    f"{where} is a {type(batch).__name__} and should be a dictionary with "
                    f"{_IDS}; give the DataLoader a collate_fn that makes them, such as "
                    "transformers' default_data_collator."
                )
            if _IDS not in batch and "inputs_embeds" in batch:
                return Text(())
            problem = _of_ids(batch, known) or _of_mask(batch)
            if problem:
                raise CalibrationError(f"{where} {problem}.")
            _check_padding(batch, where, n_samples)
            n_samples += len(batch[_IDS])
            batches.append(batch)
    text = replace(Text.read(batches), may_join=may_join and _are_plain(batches, model))
    if max(map(len, text.samples)) < 2:
        raise CalibrationError(
            "no calibration sample is longer than one token, so none is text; give longer samples."
        )
    return text


def _are_plain(batches: Sequence[Mapping[str, Any]], model: nn.Module) -> bool:
    taken = set(inspect.signature(model.forward).parameters) - {_IDS, _MASK}
    return all(
        not taken & set(batch) and getattr(batch.get(_MASK), "ndim", 2) == 2 for batch in batches
    )


def check_repeatable(calibration: Any) -> None:
    """Refuse data that can be read once only: a run reads it several times, and asks its length.

    Raises:
        CalibrationError: it has no length, or is empty the second time.
    """
    dataset = getattr(calibration, "dataset", calibration)
    try:
        len(calibration)
    except TypeError as error:
        raise CalibrationError(
            f"the calibration data comes from an iterable {type(dataset).__name__} without a "
            "length, which llm-compressor must know; give a DataLoader over list(...) of it."
        ) from error
    if isinstance(dataset, torch.utils.data.IterableDataset) and iter(dataset) is iter(dataset):
        raise CalibrationError(
            f"the calibration data comes from an iterable {type(dataset).__name__} that can be "
            "read once only, and a run reads it several times; give a DataLoader over list(...) "
            "of it."
        )


def _of_ids(batch: Mapping[str, Any], known: int) -> str | None:
    if _IDS not in batch:
        names = ", ".join(map(str, batch)) or "nothing"
        return f"has no {_IDS} but {names}; give tokenized text"
    ids = batch[_IDS]
    if not isinstance(ids, Tensor):
        return f"has a {type(ids).__name__} as {_IDS} where a tensor should be; see the collate_fn"
    if ids.numel() == 0:
        return f"has an empty sample, {_IDS} of shape {tuple(ids.shape)}; leave blank texts out"
    if ids.ndim != 2:
        shape = tuple(ids.shape)
        return f"has {_IDS} of shape {shape} where (samples, tokens) should be; see the collate_fn"
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        return f"has {_IDS} of type {ids.dtype} where whole numbers should be; see the collate_fn"
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= known:
        wrong = lowest if lowest < 0 else highest
        return (
            f"has token {wrong} and the model has the tokens 0 to {known - 1}; tokenize with the "
            "model's own tokenizer, and mark padding by the attention_mask"
        )
    return None


def _of_mask(batch: Mapping[str, Any]) -> str | None:
    mask, ids = batch.get(_MASK), batch[_IDS]
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        return f"has a {type(mask).__name__} as {_MASK} where a tensor should be"
    if mask.ndim != 4 and mask.shape != ids.shape:
        return (
            f"has an {_MASK} of shape {tuple(mask.shape)} beside {_IDS} of shape "
            f"{tuple(ids.shape)}; they must be alike"
        )
    return None


def _check_padding(batch: Mapping[str, Any], where: str, first: int) -> None:
    mask = batch.get(_MASK)
    if mask is None or mask.ndim != 2:
        return
    lengths = (mask != 0).sum(1).tolist()
    if 0 in lengths:
        raise CalibrationError(
            f"{where} has a sample that is all padding, number {first + lengths.index(0)}; leave "
            "blank texts out."
        )


@contextmanager
def _undisturbed(calibration: Any) -> Iterator[None]:
    """Give back what reading draws: from the global generators, and from the loader's own."""
    batches = getattr(calibration, "batch_sampler", None)
    holders = (calibration, batches, getattr(batches, "sampler", None))
    own = {id(g): g for g in (getattr(h, "generator", None) for h in holders)}.values()
    states = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for generator, state in states:
                generator.set_state(state)
