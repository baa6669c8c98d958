import pytest
import torch
from compressed_tensors.offload import offload_module

from funcnet_plugin.adapters import bind
from funcnet_plugin.cut.surgery import cut, set_output_bias
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.repair.repair import Cut
from tests.conftest import make_llama

KEEP = torch.tensor([0, 3, 4, 17, 30, 47])


def masked_output(block, x):
    """The MLP with the pruned neurons silenced instead of cut."""
    hidden = block.activation(block.gate(x)) * block.up(x)
    mask = torch.zeros(hidden.shape[-1], dtype=hidden.dtype)
    mask[KEEP] = 1
    return block.down(hidden * mask)


@pytest.mark.parametrize("biased", [False, True])
def test_cutting_equals_silencing(biased):
    model = make_llama(mlp_bias=biased).double()
    block = bind(model).blocks[1]
    if biased:
        for linear in (block.gate, block.up, block.down):
            torch.nn.init.normal_(linear.bias)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    expected = masked_output(block, x)
    modules = (block.gate, block.up, block.down)
    cut(block, KEEP)
    assert torch.allclose(block.mlp(x), expected, atol=1e-12)
    assert (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj) == modules
    assert block.width == len(KEEP) == block.gate.out_features == block.mlp.intermediate_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_requires_grad_stay(dtype):
    block = bind(make_llama().to(dtype)).blocks[0]
    block.up.weight.requires_grad_(False)
    cut(block, KEEP, output_weight=torch.randn(24, 6, dtype=torch.float64))
    assert {p.dtype for p in block.mlp.parameters()} == {dtype}
    assert not block.up.weight.requires_grad and block.gate.weight.requires_grad


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_offloaded_modules_are_cut_where_they_lie(device, tmp_path):
    plain, offloaded = make_llama(), make_llama()
    options = {"offload_dir": str(tmp_path)} if device == "disk" else {}
    block = bind(offloaded).blocks[0]
    for linear in (block.gate, block.up, block.down):
        offload_module(linear, "cpu", device, **options)
    cut(block, KEEP)
    set_output_bias(block, torch.arange(24.0))
    reference = bind(plain).blocks[0]
    cut(reference, KEEP)
    set_output_bias(reference, torch.arange(24.0))
    x = torch.randn(3, 24)
    assert torch.equal(block.mlp(x), reference.mlp(x))
    assert bind(offloaded).widths == [6, 48, 48]


def test_the_old_matrix_is_freed():
    block = bind(make_llama()).blocks[0]
    cut(block, KEEP)
    for linear in (block.gate, block.up, block.down):
        assert linear.weight.untyped_storage().nbytes() == linear.weight.numel() * 4


def test_tied_embeddings_stay_tied():
    model = make_llama(tie_word_embeddings=True)
    cut(bind(model).blocks[0], KEEP)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bias_is_added_once_more_on_top_of_an_existing_one():
    def cut_with_bias(keep):
        repaired = REPAIRS.make("bias").repaired(Cut(block, keep, {"moments": moments}))
        cut(block, keep, repaired.output_weight)
        set_output_bias(block, repaired.bias)

    block = bind(make_llama()).blocks[0]
    x = torch.randn(3, 24)
    before = block.mlp(x)
    set_output_bias(block, torch.ones(24))
    moments = Moments(48)
    moments.add(torch.zeros(5, 48))
    cut_with_bias(torch.arange(48))
    assert torch.allclose(block.mlp(x), before + 1, atol=1e-6)
    moments.add(torch.ones(5, 48))  # so every neuron gives 0.5 on average
    expected = block.down.bias + 0.5 * block.down.weight[:, 6:].sum(1)
    cut_with_bias(torch.arange(6))
    torch.testing.assert_close(block.down.bias, expected)
    assert block.gate.bias.abs().max() == 0 == block.up.bias.abs().max()
