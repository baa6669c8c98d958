"""What the layers are called with is found without running them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.measure.layer_calls import layer_calls
from tests.families import FAMILIES

IDS = torch.randint(3, 32, (3, 20), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS)
MASK[0, 14:] = 0  # right padding
MASK[1, :5] = 0  # left padding


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or one == other


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_arguments_are_those_of_a_whole_pass(name):
    model = FAMILIES[name].build()
    units = bind(model).blocks
    seen, entered = [], []

    def see(module, args, kwargs):
        hidden = kwargs.pop("hidden_states") if not args else args[0]
        entered.append(hidden)
        seen.append((args[1:], kwargs))

    hooks = [u.decoder_layer.register_forward_pre_hook(see, with_kwargs=True) for u in units]
    model(input_ids=IDS, attention_mask=MASK, use_cache=False)
    for hook in hooks:
        hook.remove()
    calls, first = layer_calls(model, units, IDS, MASK)
    assert torch.equal(first, entered[0])
    assert len(calls) == len(seen)
    for call, (args, kwargs) in zip(calls, seen, strict=True):
        assert equal(call.args, args)
        assert equal(tuple(call.kwargs.items()), tuple(kwargs.items()))


def test_tokens_are_brought_to_where_the_model_is():
    """They come from the calibration text, which lies on the CPU."""
    with torch.device("meta"):
        model = FAMILIES["llama"].build()
    devices = []

    def see(module, args, kwargs):
        devices.extend(kwargs[name].device.type for name in ("input_ids", "attention_mask"))
        raise KeyboardInterrupt  # meta tensors hold nothing to go on with

    model.register_forward_pre_hook(see, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        layer_calls(model, bind(model).blocks, IDS, MASK)
    assert devices == ["meta", "meta"]


@torch.no_grad()
def test_only_the_first_layer_is_run_and_all_are_as_they_were():
    model = FAMILIES["llama"].build()
    units = bind(model).blocks
    runs = []
    hooks = [
        unit.up.register_forward_hook(lambda m, a, o, i=unit.index: runs.append(i))
        for unit in units
    ]
    layer = units[1].decoder_layer
    layer.forward = placed = layer.forward  # as offloading places one of its own
    layer_calls(model, units, IDS, MASK)
    for hook in hooks:
        hook.remove()
    assert runs == [0]
    assert [vars(unit.decoder_layer).get("forward") for unit in units] == [None, placed, None]
