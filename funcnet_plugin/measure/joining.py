"""Puts samples of one text together into batches, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from funcnet_plugin.measure.room import Room
from funcnet_plugin.measure.text import Text

Batch = Mapping[str, Tensor]


def joined(text: Text, room: Room) -> list[Batch]:
    """Put neighbours together, as far as the text allows.

    Shorter samples are padded on the right, where no causal model looks, and the mask says so.

    Args:
        room: what one batch may hold; one that is larger already stays as it is.

    Returns:
        `input_ids` and `attention_mask`, (batch, length), int64; the text's own batches where they
        are not to be joined.
    """
    if not text.may_join:
        return list(text.batches)
    found: list[Batch] = []
    waiting: list[Batch] = []
    for batch in text.batches:
        if waiting and not _go_together([*waiting, batch], room, text.may_pad):
            found.append(_join(waiting))
            waiting = []
        waiting.append(batch)
    if waiting:
        found.append(_join(waiting))
    return found


def _go_together(batches: Sequence[Batch], room: Room, may_pad: bool) -> bool:
    if any(mask is not None and mask.ndim != 2 for mask in map(_mask, batches)):
        return False  # a mask of pairs
    shapes = [batch["input_ids"].shape for batch in batches]
    samples, longest = sum(n for n, _ in shapes), max(length for _, length in shapes)
    filled = samples * longest
    padding = 1.0 - sum(n * length for n, length in shapes) / filled
    return room.holds(samples, longest) and padding <= (room.padding if may_pad else 0.0)


def _join(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    longest = max(batch["input_ids"].shape[1] for batch in batches)

    def filled(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, longest - tensor.shape[1]))

    ids = [batch["input_ids"] for batch in batches]
    masks = [_mask(batch) for batch in batches]
    masks = [torch.ones_like(i) if m is None else m.to(i) for i, m in zip(ids, masks, strict=True)]
    return {
        "input_ids": torch.cat([filled(tensor) for tensor in ids]),
        "attention_mask": torch.cat([filled(tensor) for tensor in masks]),
    }


def _mask(batch: Batch) -> Tensor | None:
    return batch.get("attention_mask")
