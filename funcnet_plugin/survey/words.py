"""Finds the tokens that a network raises and lowers at the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit
from funcnet_plugin.ica.columns import ColumnMoments
from funcnet_plugin.measure.layer_calls import entering_head
from funcnet_plugin.measure.sample import PRODUCT
from funcnet_plugin.survey.blocks import BlockNetworks
from funcnet_plugin.survey.channels import Channels
from funcnet_plugin.survey.sweep import Watched
from funcnet_plugin.survey.taps import LAYER

WORDS = 10  # of each kind, for each network
_STEP = 0.1  # of the size of the hidden state: bfloat16 still tells it from rounding
_AT_ONCE = 64  # networks


def directions(
    block: BlockNetworks,
    watched: Mapping[int, Watched],
    moments: Mapping[int, ColumnMoments],
    order: Mapping[int, Sequence[str]],
) -> Tensor | None:
    """Say what each network adds to the hidden state when it is active, to first order.

    Args:
        watched: layer -> whose channels its maps are of.
        moments: layer -> of all its signals, one after the other.
        order: layer -> names of these signals; those that were decomposed stand first.

    Returns:
        (k, hidden), float32, on the CPU; None where channels do not reach the hidden state without
        another module that is not known: of all modules only the output of the layer itself does.
    """
    total = None
    for layer, columns in block.layers.items():
        of, found = watched[layer], moments[layer]
        scale = found.scale.cpu()
        deviation = torch.where(scale > 0, 1.0 / scale, 0.0).view(-1, of.width)
        maps = block.maps[:, columns].double().view(len(block.maps), -1, of.width)
        changes = {
            name: maps[:, signal] * deviation[signal]
            for signal, name in zip(range(maps.shape[1]), order[layer], strict=False)
        }
        if isinstance(of, Channels):
            added = changes.get(LAYER)
        else:
            means = dict(zip(order[layer], found.mean.cpu().view(-1, of.width), strict=True))
            added = _of_neurons(of, changes, means)
        if added is not None:
            total = added if total is None else total + added
    return total


def _of_neurons(unit: Unit, changes: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> Tensor:
    """Say what changes of neurons add to the hidden state.

    The activity of a neuron is the product of its signals, so each changes it by its own change
    times the mean of the other; `product` is that activity itself.

    Args:
        changes: signal -> (k, width), float64.
        means: signal -> (width,).
    """
    change = 0.0
    for signal, mine in changes.items():
        others = [means[name] for name in unit.signals if name != signal]
        gain = torch.stack(others).prod(0) if others and signal != PRODUCT else 1.0
        change = change + mine * gain
    return change.float() @ unit.output_weight.detach().float().cpu().T


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
