"""Decides once, by the seed, which calibration samples a process reads, and in which order.

llm-compressor shuffles with torch's global generator, anew for every modifier and every pass, so a
run would depend on what was drawn before it. And its partition of a dataset among processes gives
every one the same first slice: it selects rows for the sampler and lets the loader read the dataset
they were selected from. The loader is the user's, so its own sampler comes back (`restore_order`).
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.distributed import is_distributed
from torch.utils.data import DataLoader, RandomSampler, Sampler

from funcnet_plugin.errors import CalibrationError, RecipeError
from funcnet_plugin.measure.processes import Processes


class _Positions(Sampler[int]):
    """Gives a fixed list of samples.

    Attributes:
        replaced: the sampler that stood here before.
    """

    def __init__(self, indices: list[int], replaced: Any) -> None:
        self._indices, self.replaced = indices, replaced

    def __iter__(self):
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def arrange(calibration: Any, samples_per_group: int, seed: int) -> Processes | None:
    """Decide what this process reads: everything, or its share where there are several.

    Returns:
        the processes of the run; None for one.
    """
    if not is_distributed():
        fix_order(calibration, seed)
        return None
    processes = Processes.current()
    _share_groups(calibration, processes, samples_per_group, seed)
    return processes


def fix_order(calibration: Any, seed: int) -> None:
    """Draw the order of shuffled samples now, once for all passes.

    A loader with an order of its own keeps it; one with a generator of its own draws with that.
    """
    batches = _batches(calibration)
    if batches is None:
        return
    if _is_shuffled(batches.sampler):
        _fix(batches, _drawn(calibration, len(batches.sampler), seed))
    elif hasattr(batches.sampler, "generator"):
        _fix(batches, _read(batches.sampler, seed))


def restore_order(calibration: Any) -> None:
    """Give a loader the sampler back that it came with."""
    batches = _batches(calibration)
    while batches is not None and isinstance(batches.sampler, _Positions):
        batches.sampler = batches.sampler.replaced


def _fix(batches: Any, indices: list[int]) -> None:
    batches.sampler = _Positions(indices, batches.sampler)


def _share_groups(
    calibration: Any, processes: Processes, samples_per_group: int, seed: int
) -> None:
    """Let this process read its own whole groups of the samples that one process would read.

    Args:
        calibration: the DataLoader of the run; its sampler is replaced until `restore_order`. One
            that the user gave is the same in every process, and shared here.
        processes: of the run.
        samples_per_group: 1 where samples are not grouped.
        seed: of the order, where samples are shuffled.

    Raises:
        CalibrationError: not a DataLoader over a dataset with a length.
        RecipeError: fewer groups than processes.
    """
    batches = _batches(calibration)
    if batches is None:
        raise CalibrationError(
            "several processes can share a dataset or a DataLoader with a sampler; an iterable "
            "dataset cannot be divided into whole groups."
        )
    order = _order_of_one_process(calibration, processes, seed)
    n_groups = len(order) // samples_per_group
    if n_groups < processes.count:
        raise RecipeError(
            f"{len(order)} samples make {n_groups} groups of {samples_per_group}, too few for "
            f"{processes.count} processes; start fewer processes or give more samples."
        )
    mine = processes.my_samples(len(order), samples_per_group)
    _fix(batches, [order[position] for position in mine])


def _batches(calibration: Any) -> Any | None:
    batches = getattr(calibration, "batch_sampler", None)
    has_sampler = isinstance(calibration, DataLoader) and hasattr(batches, "sampler")
    return batches if has_sampler else None


def _is_shuffled(sampler: Any) -> bool:
    return isinstance(sampler, RandomSampler) and sampler.generator is None


def _drawn(loader: DataLoader, n_samples: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return list(RandomSampler(loader.dataset, num_samples=n_samples, generator=generator))


def _read(sampler: Any, seed: int) -> list[int]:
    """Ask a sampler; the seed decides where it has no generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(sampler)


def _order_of_one_process(loader: DataLoader, processes: Processes, seed: int) -> list[int]:
    sampler = loader.batch_sampler.sampler
    partitioned = getattr(sampler, "data_source", loader.dataset) is not loader.dataset
    total = processes.total(len(sampler)) if partitioned else len(sampler)
    if _is_shuffled(sampler):
        return _drawn(loader, total, seed)
    if partitioned:  # the longest first
        lengths = torch.tensor([len(ids) for ids in loader.dataset["input_ids"]])
        return torch.argsort(lengths, descending=True).tolist()[:total]
    return _read(sampler, seed)
