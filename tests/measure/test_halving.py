"""A batch without memory comes again in halves, and nothing is counted twice or lost."""

import pytest
import torch

from funcnet_plugin.adapters import bind
from funcnet_plugin.errors import CalibrationError
from funcnet_plugin.measure.dense_moments import moments_of
from funcnet_plugin.measure.gradients import output_gradients, weight_gradients
from funcnet_plugin.measure.text import Text
from tests.conftest import make_llama
from tests.hosting import logged

IDS = torch.randint(3, 32, (7, 12), generator=torch.Generator().manual_seed(4))


def text(samples: int) -> Text:
    return Text.read({"input_ids": part} for part in IDS.split(samples))


class Small(torch.autograd.Function):
    """Has no memory for more than some samples, forward or on the way back."""

    @staticmethod
    def forward(ctx, x, samples, back):
        ctx.refused = back and len(x) > samples
        if not back and len(x) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.refused:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient, None, None


def small(model, samples=2, back=False):
    """Let the middle layer run out of memory, when others have the batch already."""
    model.model.layers[1].self_attn.register_forward_hook(
        lambda m, args, output: (Small.apply(output[0], samples, back), *output[1:])
    )
    return model


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("of", ["weights", "outputs"])
def test_gradients_are_those_of_smaller_batches(of, back):
    def found(model, samples):
        blocks = bind(model).blocks
        if of == "weights":
            by_layer = weight_gradients(model, text(samples), blocks)
            return [gradient for layer in by_layer.values() for gradient in layer]
        return list(output_gradients(model, text(samples), blocks, seed=1).values())

    expected = found(make_llama(), 1)
    with logged() as lines:
        halved = found(small(make_llama(), back=back), 7)
    for a, b in zip(halved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    warned = [line for line in lines if "ran out of memory" in line]
    assert len(warned) == 1 and "7 samples of 12 tokens" in warned[0]


def test_moments_are_those_of_smaller_batches():
    def found(model, samples):
        blocks = bind(model).blocks
        return moments_of(model, blocks, text(samples), blocks)

    expected = found(make_llama(), 1)
    with logged() as lines:
        halved = found(small(make_llama()), 7)
    for index, moments in halved.items():
        assert moments.count == expected[index].count == 84
        torch.testing.assert_close(moments.second, expected[index].second)
    assert any("goes on with half as many" in line for line in lines)


def test_one_sample_without_memory_ends_in_a_sentence():
    model = small(make_llama(), samples=0)
    blocks = bind(model).blocks
    with pytest.raises(CalibrationError, match="with one sample of 12 tokens; give shorter"):
        output_gradients(model, text(7), blocks, seed=0)
    with pytest.raises(CalibrationError, match="with one sample of 12 tokens; give shorter"):
        moments_of(model, blocks, text(7), blocks)
