"""Goes on where a batch runs out of memory: with the halves of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

import torch
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.passes import model_inputs

Batch = Mapping[str, Tensor]


def halves(batch: Batch, what: str) -> tuple[Batch, Batch]:
    """Divide a batch for which there was no memory.

    Args:
        what: ran out of memory, for a message.

    Raises:
        CalibrationError: it is one sample.
    """
    samples, length = batch["input_ids"].shape
    if samples < 2:
        raise CalibrationError(
            f"{what} ran out of memory with one sample of {length} tokens; give shorter samples "
            "(max_seq_length=, --window), or more memory."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # its parts may be too small for what comes
    half = (samples + 1) // 2
    return (
        {name: tensor[:half] for name, tensor in batch.items()},
        {name: tensor[half:] for name, tensor in batch.items()},
    )


class Reading:
    """Gives the batches of a text to a pass; one that runs out of memory comes again in halves.

    What a pass adds up in many places, such as every layer's gradients, has the lost batch in some
    of them already. So each place asks whether a batch is new to it, and says when it has it.

    Args:
        model: is called with them.
        batches: of the text.
        what: the pass does, for a bar and a warning.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch], what: str) -> None:
        self._model, self._batches, self._what = model, batches, what
        self._end = 0  # samples behind the batch that is being read
        self._had: dict[Hashable, int] = {}
        self._most: int | None = None  # tokens of a batch, once one was too large

    def each(self, step: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """Call a function with ids, mask and labels of every batch, see `model_inputs`.

        Raises:
            CalibrationError: memory does not even hold one sample.
        """
        first = 0
        for inputs in model_inputs(self._model, self._batches, self._what):
            names = ("input_ids", "attention_mask", "labels")
            left: list[Batch] = [dict(zip(names, inputs, strict=True))]
            while left:
                batch = left.pop(0)
                samples = len(batch["input_ids"])
                self._end = first + samples
                if not self._too_large(batch) and self._try(step, batch):
                    first = self._end
                    continue
                left[:0] = halves(batch, self._what)

    def is_new_to(self, place: Hashable) -> bool:
        """Tell whether a place lacks the batch that is being read."""
        return self._end > self._had.get(place, 0)

    def taken_by(self, place: Hashable) -> None:
        """Note that a place has it now."""
        self._had[place] = self._end

    def _too_large(self, batch: Batch) -> bool:
        samples, length = batch["input_ids"].shape
        return self._most is not None and samples > 1 and samples * length > self._most

    def _try(self, step: Callable[[Tensor, Tensor, Tensor], None], batch: Batch) -> bool:
        try:
            step(*batch.values())
        except torch.OutOfMemoryError:  # what it held is free when this is left
            samples, length = batch["input_ids"].shape
            if self._most is None and samples > 1:
                say_halved(self._what, samples, length)
            self._most = samples * length // 2
            return False
        return True


def say_halved(what: str, samples: int, length: int) -> None:
    """Warn that a batch was too large."""
    logger.warning(
        f"{what} ran out of memory with {samples} samples of {length} tokens at once; it goes on "
        "with half as many, nothing is lost."
    )
