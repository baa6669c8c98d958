"""How much the loss bends along the output of a unit, without any hook on a backward pass, and
which labels were drawn for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import MLPBlock
from funcnet_plugin.measure import gradients


def output_slopes(
    model: nn.Module, block: MLPBlock, ids: Sequence[Tensor], labels: Sequence[Tensor]
) -> np.ndarray:
    """The gradient of the summed loss by the output of the block, (tokens, hidden), float64: read
    off something that is added to the output.

    Args:
        ids: of each batch, (batch, length), without padding.
        labels: of each batch, what it should say next, (batch, length - 1).
    """
    rows = []
    for batch, targets in zip(ids, labels, strict=True):
        added = torch.zeros(*batch.shape, block.hidden_size, requires_grad=True)
        hook = block.mlp.register_forward_hook(lambda m, a, out, added=added: out + added)
        said = model(input_ids=batch).logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(said, targets.flatten(), reduction="sum")
        rows.append(torch.autograd.grad(loss, added)[0].flatten(0, 1).double())
        hook.remove()
    return torch.cat(rows).numpy()


def drawn_labels(patch: pytest.MonkeyPatch) -> list[Tensor]:
    """A list that fills with the labels that are drawn for each batch, (batch, length - 1)."""
    found, draw = [], gradients.drawn_tokens

    def drawn(*args: Tensor | int) -> Tensor:
        tokens = draw(*args)
        found.append(tokens[:, :-1])
        return tokens

    patch.setattr(gradients, "drawn_tokens", drawn)
    return found
