"""Decides how large a batch is: as many tokens as make a pass fast, if memory holds them.

On a GPU, below some thousand tokens a call of a layer costs more than its arithmetic. On a CPU a
batch soon gains nothing, and tensors that are too large for what the allocator keeps are slower
(docs/experiments/real-models.md); padding is work for nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from compressed_tensors.offload import disable_onloading
from torch import nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.measure.free_memory import free_bytes

_FAST_ON_CPU = 64 * 2**20  # bytes inside of a layer
_SHARE = 0.25  # of the free memory: what is measured needs some as well
_FLOAT = 4  # bytes: softmax, losses and what is added up are float32


@dataclass(frozen=True)
class Limit:
    """Says how much a batch may take of something.

    Attributes:
        bytes: that it may take.
        per_token: what each of its tokens takes, padding counted.
        per_pair: what each pair of tokens of one sample takes.
    """

    bytes: float
    per_token: int
    per_pair: int

    def holds(self, samples: int, length: int) -> bool:
        """Tell whether so many samples of one length stay within it."""
        return self.taken(samples, length) <= self.bytes

    def taken(self, samples: int, length: int) -> int:
        """Count what so many samples of one length take."""
        return samples * length * (self.per_token + length * self.per_pair)


@dataclass(frozen=True)
class Room:
    """Says what a batch may hold.

    Attributes:
        tokens: padding counted.
        padding: the largest share of them that may be padding, in [0, 1).
        limits: in bytes.
    """

    tokens: int
    padding: float
    limits: tuple[Limit, ...] = ()

    def holds(self, samples: int, length: int) -> bool:
        """Tell whether so many samples, padded to one length, fit."""
        small = samples * length <= self.tokens
        return small and all(limit.holds(samples, length) for limit in self.limits)

    def most(self, length: int) -> int:
        """Count the samples of one length that a batch has: as many as fit, at least one."""
        found = [self.tokens // length]
        found += [int(limit.bytes // limit.taken(1, length)) for limit in self.limits]
        return max(1, min(found))


def room_for(
    model: nn.Module,
    units: Sequence[Unit],
    device: torch.device,
    *,
    backward: bool = False,
    checkpointed: bool = False,
    compared: bool = False,
) -> Room:
    """Look how much of what a pass computes fits into the free memory of a device.

    Args:
        units: some of the model's, at least one.
        device: where the model runs; its weights have their place there already.
        backward: whether a loss is taken and sent back: logits and the insides of all layers are
            kept then.
        checkpointed: whether the backward pass computes the insides of a layer again.
        compared: whether the loss compares logits with those of another model, which takes
            twice as many tensors of tokens by the vocabulary.
    """
    return room_within(
        free_bytes(device),
        model,
        units,
        device.type,
        backward=backward,
        checkpointed=checkpointed,
        compared=compared,
    )


def room_within(
    free: float,
    model: nn.Module,
    units: Sequence[Unit],
    device: str,
    *,
    backward: bool = False,
    checkpointed: bool = False,
    compared: bool = False,
) -> Room:
    """Compute what a batch may hold.

    Args:
        free: bytes of the device that are free, weights being there.
        model: may be on the meta device.
        device: its type.
        units, backward, checkpointed, compared: see `room_for`.
    """
    hidden, width = units[0].hidden_size, max(unit.n_columns for unit in units)
    with disable_onloading():  # only its type is asked
        item = units[0].output.weight.element_size()
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None) or max(1, hidden // 64)
    inside, scores = (8 * hidden + 5 * width) * item, heads * (3 * item + _FLOAT)
    layer = (inside + _FLOAT * width, scores)
    per_token, per_pair = layer
    if backward:
        layers = getattr(config, "num_hidden_layers", None) or len(units)
        vocabulary = model.get_input_embeddings().num_embeddings
        per_token += vocabulary * item * (6 if compared else 3)
        per_token += layers * (hidden * item if checkpointed else inside)
        if getattr(config, "_attn_implementation", None) == "eager" and not checkpointed:
            per_pair += layers * scores
    memory = Limit(_SHARE * free, per_token, per_pair)
    if device == "cpu":
        return Room(2048, 0.05, (memory, Limit(_FAST_ON_CPU, *layer)))
    return Room(16384, 0.5, (memory,))
