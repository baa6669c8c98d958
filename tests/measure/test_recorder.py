"""Padding must never reach the statistics."""

import pytest
import torch
from transformers import DynamicCache

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.recorder import Recorder, real_tokens
from tests.conftest import make_llama


def record(model, **inputs):
    """Samples of layer 1 for one forward pass."""
    samples = []

    def register(module, hook, kind, **options):
        return getattr(module, f"register_{kind}_hook")(hook, **options)

    Recorder(bind(model).blocks[1], register, samples.append)
    with torch.no_grad():
        model(**inputs)
    return samples


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_samples_it_was_made_of(attention, side):
    model = make_llama(attn_implementation=attention)
    lengths = [9, 5, 7]
    rows = [torch.randint(3, 32, (n,)) for n in lengths]
    ids = torch.zeros(3, 9, dtype=torch.long)
    mask = torch.zeros(3, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(9 - len(row), 9) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    batched = record(model, input_ids=ids, attention_mask=mask, position_ids=positions)
    assert [len(s.inner) for s in batched] == lengths
    for sample, row in zip(batched, rows, strict=True):
        (alone,) = record(make_llama(attn_implementation=attention), input_ids=row[None])
        for name in ("act", "up"):
            assert torch.allclose(sample.signals[name], alone.signals[name], atol=1e-5)
        assert torch.allclose(sample.inner, alone.inner, atol=1e-5)
        assert torch.allclose(sample.entered, alone.entered, atol=1e-5)


def test_a_sample_is_the_inside_of_the_mlp():
    model = make_llama()
    seen = {}
    block = bind(model).blocks[1]
    block.mlp.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    (sample,) = record(model, input_ids=torch.randint(3, 32, (1, 6)))
    act = torch.nn.functional.silu(seen["x"][0] @ block.gate.weight.T)
    up = seen["x"][0] @ block.up.weight.T
    assert torch.allclose(sample.signals["act"], act, atol=1e-5)
    assert torch.allclose(sample.inner, act * up, atol=1e-5)
    joined = torch.cat([sample.signals["up"], sample.signals["act"]], 1)
    assert torch.equal(sample.joined(["up", "act"]), joined)


def test_a_mask_that_does_not_show_padding_is_refused():
    with pytest.raises(CalibrationError, match="sdpa"):
        real_tokens(DynamicCache(), 1, 4)


def test_layers_split_by_sequential_targets_are_refused():
    model = make_llama()
    hooks = {}

    def register(module, hook, kind, **options):
        hooks[kind, module] = hook

    block = bind(model).blocks[0]
    Recorder(block, register, lambda sample: None)
    with pytest.raises(CalibrationError, match="sequential_targets"):
        hooks["forward_pre", block.down](block.down, (torch.randn(1, 4, 48),))
