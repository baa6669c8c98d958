"""Finds the tokens that a network raises and lowers at the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.ica.columns import ColumnMoments
from funcnet_plugin.measure.layer_calls import entering_head
from funcnet_plugin.survey.blocks import BlockNetworks

WORDS = 10  # of each kind, for each network
_STEP = 0.1  # of the size of the hidden state: bfloat16 still tells it from rounding
_AT_ONCE = 64  # networks


def directions(
    block: BlockNetworks, units: Mapping[int, Unit], moments: Mapping[int, ColumnMoments]
) -> Tensor:
    """Say what each network adds to the hidden state when it is active, to first order.

    The activity of a neuron is the product of its signals, so each changes it by its own change
    times the mean of the other.

    Args:
        units: by layer.
        moments: layer -> of all its signals, one after the other.

    Returns:
        (k, hidden), float32, on the CPU.
    """
    total = 0.0
    for layer, columns in block.layers.items():
        unit, found = units[layer], moments[layer]
        width, scale = unit.width, found.scale.cpu()
        deviation = torch.where(scale > 0, 1.0 / scale, 0.0).view(-1, width)
        means = found.mean.cpu().view(-1, width)
        maps = block.maps[:, columns].double().view(len(block.maps), -1, width)
        change = 0.0
        for signal in range(maps.shape[1]):  # of those that were decomposed, the first ones
            others = [means[s] for s in range(len(means)) if s != signal]
            gain = torch.stack(others).prod(0) if others else 1.0
            change = change + maps[:, signal] * deviation[signal] * gain
        total = total + change.float() @ unit.output_weight.detach().float().cpu().T
    return total


@torch.no_grad()
def words(
    model: nn.Module, units: Sequence[Unit], directions: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the tokens whose logits rise and fall most along some directions.

    The final norm is taken through the model itself, around a typical state; then the head's
    weights say what becomes of each logit.

    Args:
        units: of all layers.
        directions: (n, hidden), of the hidden state behind the last layer.
        state: (hidden,), a typical one.

    Returns:
        raised, lowered: (n, WORDS), int64, the strongest first.
    """
    head = model.get_output_embeddings().weight
    raised, lowered = [], []
    for some in directions.split(_AT_ONCE):
        step = torch.nn.functional.normalize(some, dim=1) * (_STEP * state.norm())
        both = torch.cat([state + step, state - step]).to(head.device)
        up, down = entering_head(model, units, both).float().chunk(2)
        change = (up - down) @ head.detach().float().T
        raised.append(change.topk(WORDS).indices.cpu())
        lowered.append((-change).topk(WORDS).indices.cpu())
    return torch.cat(raised), torch.cat(lowered)
