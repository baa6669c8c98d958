"""Keeps what a dense model predicts, so that a pruned one can be compared with it later.

Logits of a whole text are more than memory holds, so what enters the model's head is kept, and the
head gives the logits again: pruning does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from funcnet_plugin.adapters import Unit
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.finite import check_finite
from funcnet_plugin.measure.halving import Reading
from funcnet_plugin.measure.hooks import hooked
from funcnet_plugin.measure.joining import joined
from funcnet_plugin.measure.offloading import device_of
from funcnet_plugin.measure.passes import on_gpu
from funcnet_plugin.measure.processes import Processes
from funcnet_plugin.measure.room import room_for
from funcnet_plugin.measure.text import Text


@dataclass(frozen=True)
class Predicted:
    """Holds one window of a text and what the dense model makes of it.

    Attributes:
        ids: (length,), int64.
        states: (length, hidden), what enters the head, in the model's dtype, on the CPU.
        weight: what each of its tokens counts; those of all windows of all texts sum to 1.
        sample: number of the calibration sample that it belongs to.
        may_pad: whether it may be padded, to be read beside longer windows.
    """

    ids: Tensor
    states: Tensor
    weight: float
    sample: int
    may_pad: bool


def head_of(model: nn.Module) -> nn.Module:
    """Find the module that gives logits.

    Raises:
        RecipeError: the model does not name it.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is None:
        raise RecipeError(
            f"{type(model).__name__} does not say which module predicts tokens "
            "(get_output_embeddings), so its predictions cannot be compared; take repair: "
            "least_squares."
        )
    return head


@torch.no_grad()
def predictions_of(
    model: nn.Module,
    units: Sequence[Unit],
    texts: Sequence[Text],
    processes: Processes | None = None,
) -> list[Predicted]:
    """Run the dense model over texts, up to its head.

    Args:
        model: its weights may be offloaded.
        units: of all layers.
        texts: padding is left out, so that nothing depends on it; their shares sum to 1.
        processes: others that read other samples.

    Raises:
        NumbersError: what enters the head is not finite.
        RecipeError: the model has no head that is called once for all tokens.
    """
    head, found = head_of(model), []
    with on_gpu(model):
        room = room_for(model, units, device_of(model))
        for text in texts:
            count = text.n_tokens if processes is None else processes.total(text.n_tokens)
            windows = [torch.tensor(sample) for sample in text.samples]
            states = _entering(head, model, joined(one_by_one(windows, text.may_pad), room))
            found += [
                Predicted(ids, kept, text.share / count, i // text.per_sample, text.may_pad)
                for i, (ids, kept) in enumerate(zip(windows, states, strict=True))
            ]
    return found


def one_by_one(windows: Sequence[Tensor], may_pad: bool) -> Text:
    """Make a text of windows, each (length,), that passes may put together as they like."""
    rows = [window[None] for window in windows]
    batches = tuple({"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows)
    return Text(batches, may_join=True, may_pad=may_pad)


def padded(states: Sequence[Tensor], length: int) -> Tensor:
    """Put states of windows, each (own length, hidden), beside each other: (n, length, hidden)."""
    beside = pad_sequence(list(states), batch_first=True)
    return nn.functional.pad(beside, (0, 0, 0, length - beside.shape[1]))


class _HeadReachedError(Exception):
    """Ends a pass where the head would begin."""


def _entering(head: nn.Module, model: nn.Module, batches: Sequence[dict]) -> list[Tensor]:
    """List what enters the head for every window, (length, hidden), on the CPU."""
    found: list[Tensor] = []
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = args[:1]
        raise _HeadReachedError

    def step(ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        seen.clear()
        with suppress(_HeadReachedError):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        if not seen or seen[0].shape[:-1] != ids.shape:
            raise RecipeError(
                f"{type(model).__name__} does not give its head the hidden states of all tokens, "
                "so its predictions cannot be compared; take repair: least_squares."
            )
        for states, real in zip(seen[0], mask.bool(), strict=True):
            kept = states[real.to(states.device)]
            check_finite(kept, "the hidden states that enter the dense model's head")
            found.append(kept.cpu())

    with hooked([head.register_forward_pre_hook(see)]):
        Reading(model, batches, "what the dense model predicts").each(step)
    return found
