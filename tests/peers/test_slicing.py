"""SliceGPT against its paper's formula computed another way."""

import copy
import subprocess

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.checkpoints.block import read_block
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.slicing import (
    fuse_norms,
    norms,
    parameters_after,
    principal_axes,
    slice_hidden,
)
from tests.conftest import make_llama
from tests.hosting import IDS, logits, reload_without_us, run
from tests.peers.test_whole_model_peers import hidden_states, padded, peer

pytestmark = pytest.mark.usefixtures("forget_the_session")


@pytest.fixture
def double():
    """Float64, norms with weights that matter, biases, tied embeddings."""
    model = make_llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.5 + noise)
    return model


def test_fusing_the_norms_changes_nothing(double):
    expected = logits(double)
    fuse_norms(double)
    assert torch.allclose(logits(double), expected, atol=1e-10)
    assert all(torch.equal(n.weight, torch.ones_like(n.weight)) for n in norms(double))


def test_the_axes_are_those_of_the_normed_inputs(double, texts):
    """Against singular vectors of the inputs themselves, read by the model's own outputs."""
    fuse_norms(double)
    batches = padded(texts)
    axes = principal_axes(double, Text.read(batches))
    assert len(axes) == 7
    states = [hidden_states(double, batch) for batch in batches]
    for p, i in ((0, 0), (2, 1), (4, 2), (6, 3)):  # in front of the attentions, and the last
        x = torch.cat([s[i] for s in states])
        x = x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        _, _, expected = torch.linalg.svd(x, full_matrices=False)
        cosine = (axes[p] * expected.T).sum(0).abs()
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-6)


def test_rotating_without_cutting_changes_nothing(double, texts):
    expected = logits(double)
    fuse_norms(double)
    slice_hidden(double, principal_axes(double, Text.read(padded(texts))), 24)
    # LlamaRMSNorm computes in float32
    assert torch.allclose(logits(double), expected, atol=1e-5)


@torch.no_grad()
def projected(model, axes, size):
    """The same in the original axes: the hidden states are projected in front of every block."""
    P = [axis[:, :size] @ axis[:, :size].T for axis in axes]
    inner, length = model.model, IDS.shape[1]
    mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    x = inner.embed_tokens(IDS) @ P[0]
    rotary = inner.rotary_emb(x, torch.arange(length)[None])
    for i, layer in enumerate(inner.layers):
        attended, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(x),
            position_embeddings=rotary,
            attention_mask=mask,
        )
        x = (x + attended) @ P[2 * i + 1]
        x = (x + layer.mlp(layer.post_attention_layernorm(x))) @ P[2 * i + 2]
    return model.lm_head(inner.norm(x))


def test_slicing_is_projecting_the_hidden_states(double, texts):
    fuse_norms(double)
    axes = principal_axes(double, Text.read(padded(texts)))
    expected = projected(copy.deepcopy(double), axes, 16)
    assert parameters_after(double, 16) == _count(slice_in_place(double, axes, 16))
    assert torch.allclose(logits(double), expected, atol=1e-5)


def slice_in_place(model, axes, size):
    slice_hidden(model, axes, size)
    return model


def _count(model):
    return sum({id(p): p.numel() for p in model.parameters()}.values())


def test_a_sliced_model_is_saved_and_loaded(fresh, texts, tmp_path):
    model = run(
        fresh(),
        texts,
        peer("HiddenSlicingModifier", multiple_of=2),
        output_dir=str(tmp_path / "out"),
    )
    block = read_block(tmp_path / "out")
    assert block["parameters_after"] == _count(model)
    assert block["pruning_ratio_reached"] == pytest.approx(0.2, abs=0.08)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == "SlicedLlamaForCausalLM"
    assert torch.equal(logits(loaded), logits(model))
    with_cache = loaded.generate(IDS, max_new_tokens=6, do_sample=False)
    without = loaded.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


def test_without_this_package_a_sliced_model_is_refused(fresh, texts, tmp_path, capfd):
    run(
        fresh(),
        texts,
        peer("HiddenSlicingModifier", multiple_of=2),
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(subprocess.CalledProcessError):
        reload_without_us(tmp_path / "out")
    assert "sliced_llama" in capfd.readouterr().err


def test_quantization_and_width_pruning_follow_slicing(fresh, texts, tmp_path):
    width = {"pruning_ratio": 0.1, "scorer": "effect", "align": 4}
    gptq = {"scheme": "W8A8", "targets": "Linear", "ignore": ["lm_head"]}
    text = peer(
        "HiddenSlicingModifier",
        {"WidthPruningModifier": width, "GPTQModifier": gptq},
        multiple_of=2,
    )
    model = run(fresh(), texts, text, output_dir=str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)


SPARSE = {"SparseGPTModifier": {"sparsity": 0.5, "mask_structure": "2:4", "targets": ["Linear"]}}
IN_GROUPS = {"QuantizationModifier": {"scheme": "NVFP4A16", "targets": "Linear"}}
SLICED_TO_22 = {"multiple_of": 11, "pruning_ratio": 0.3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (peer("HiddenSlicingModifier", SPARSE, **SLICED_TO_22), "2:4 of 4, which do not divide"),
        (peer("HiddenSlicingModifier", IN_GROUPS, **SLICED_TO_22), "groups of 16, which do not"),
        (yaml.safe_dump({"a_stage": {"a_modifiers": SPARSE, "p_modifiers": {
            "HiddenSlicingModifier": {"pruning_ratio": 0.2}}}}), "put slicing first"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_slicing_is_refused_before_it(fresh, texts, text, message):
    model = fresh()
    before = logits(model)
    with pytest.raises(RecipeError, match=message):
        run(model, texts, text)
    assert torch.equal(logits(model), before)
