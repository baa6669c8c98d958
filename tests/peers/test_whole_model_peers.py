"""Dropping layers (ShortGPT, Shortened LLaMA) and slicing hidden states (SliceGPT), each against
its paper's formula computed another way."""

import copy
import json
import math
import subprocess

import pytest
import torch
import yaml
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from funcnet_plugin.checkpoints.block import read_block
from funcnet_plugin.errors import AdapterError, BudgetError, CalibrationError, RecipeError
from funcnet_plugin.peers.depth import block_influence, drop_layers, perplexity_without
from funcnet_plugin.peers.slicing import (
    fuse_norms,
    norms,
    parameters_after,
    principal_axes,
    slice_hidden,
)
from tests.conftest import make_llama
from tests.hosting import IDS, loader, logits, reload_without_us, run

pytestmark = pytest.mark.usefixtures("forget_the_session")


def peer(name, then=None, **fields):
    """A recipe of a modifier that has none of the width modifiers' fields."""
    stage = {"p_modifiers": {name: {"pruning_ratio": 0.2} | fields}}
    if then:
        stage["q_modifiers"] = then
    return yaml.safe_dump({"t_stage": stage}, sort_keys=False)


def padded(texts):
    """Batches of two windows, the second with eight pads."""
    batches = list(loader(texts, samples=6, batch_size=2))
    for batch in batches:
        batch["attention_mask"][1, -8:] = 0
    return batches


def hidden_states(model, batch):
    """Layer inputs and the last layer's output, real tokens only: L + 1 of (tokens, hidden)."""
    seen = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        found = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    hook.remove()
    real = batch["attention_mask"].bool()
    return [state[real].double() for state in (*found.hidden_states[:-1], seen[0])]


def test_block_influence_is_shortgpts(texts):
    model, batches = make_llama(), padded(texts)
    states = [hidden_states(model, batch) for batch in batches]
    expected = []
    for i in range(3):
        before, after = (torch.cat([s[j] for s in states]) for j in (i, i + 1))
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        expected.append(1 - float(cosine.mean()))
    assert block_influence(model, model.model.layers, batches) == pytest.approx(expected)
    assert len(set(expected)) == 3


def test_perplexity_without_a_layer_is_that_of_the_model_without_it(texts):
    model, batches = make_llama(), list(loader(texts, samples=6))
    found = perplexity_without(model, model.model.layers, batches)
    for i in range(3):
        smaller = make_llama(num_hidden_layers=2)
        state = {}
        for key, value in model.state_dict().items():
            if key.startswith("model.layers."):
                layer = int(key.split(".")[2])
                if layer == i:
                    continue
                key = key.replace(f"layers.{layer}.", f"layers.{layer - (layer > i)}.")
            state[key] = value
        smaller.load_state_dict(state)
        with torch.no_grad():
            loss = [float(smaller(b["input_ids"], labels=b["input_ids"]).loss) for b in batches]
        assert found[i] == pytest.approx(math.exp(sum(loss) / len(loss)), rel=1e-5)


@pytest.mark.parametrize("score", ["block_influence", "perplexity"])
def test_the_layer_that_is_needed_least_goes(fresh, texts, tmp_path, score):
    model = run(
        fresh(),
        texts,
        peer("DepthPruningModifier", score=score, pruning_ratio=0.3),
        output_dir=str(tmp_path / "out"),
    )
    block = read_block(tmp_path / "out")
    scores = block["layer_scores"]
    dropped = set(range(3)) - set(block["kept_layers"])
    assert dropped == {scores.index(min(scores))}
    before, after = block["parameters_before"], block["parameters_after"]
    assert block["pruning_ratio_reached"] == pytest.approx(1 - after / before)
    assert after == sum(p.numel() for p in model.parameters())
    expected = copy.deepcopy(fresh())
    drop_layers(expected, "model.layers", block["kept_layers"])
    assert torch.equal(logits(model), logits(expected))
    assert torch.equal(reload_without_us(tmp_path / "out"), logits(model))
    assert not (tmp_path / "out" / "kept_neurons.json").exists()


def test_a_model_without_some_layers_generates_with_its_cache(fresh):
    model = fresh()
    drop_layers(model, "model.layers", [0, 2])
    with_cache = model.generate(IDS, max_new_tokens=6, do_sample=False)
    without = model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


def test_settings_that_the_config_has_per_layer_follow(tmp_path):
    torch.manual_seed(0)
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, layer_types=kinds, sliding_window=4,
            use_sliding_window=True, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    model.config.per_layer_config = {2: {"rms_norm_eps": 0.5}}
    drop_layers(model, "model.layers", [0, 2, 3])
    assert model.config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert model.config.num_hidden_layers == 3
    assert [layer.rms_norm_eps for layer in model.config.per_layer_config] == [1e-6, 0.5, 1e-6]
    model.config.per_layer_config = None
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


def test_width_pruning_follows_dropping_layers(fresh, texts, tmp_path):
    fields = {"pruning_ratio": 0.1, "scorer": "effect", "align": 4}
    text = peer("DepthPruningModifier", {"WidthPruningModifier": fields}, pruning_ratio=0.3)
    model = run(fresh(), texts, text, output_dir=str(tmp_path / "out"))
    assert len(model.model.layers) == 2
    assert torch.equal(reload_without_us(tmp_path / "out"), logits(model))
    assert len(json.loads((tmp_path / "out" / "kept_neurons.json").read_text())["kept"]) == 2


def test_quantization_follows_dropping_layers(fresh, texts, tmp_path):
    gptq = {"GPTQModifier": {"scheme": "W8A8", "targets": "Linear", "ignore": ["lm_head"]}}
    text = peer("DepthPruningModifier", gptq, pruning_ratio=0.3)
    model = run(fresh(), texts, text, output_dir=str(tmp_path / "out"))
    block = read_block(tmp_path / "out")
    layer = sum(p.numel() for p in make_llama().model.layers[0].parameters())
    assert block["parameters_after"] == block["parameters_before"] - layer  # scales do not count
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)


# -- SliceGPT ------------------------------------------------------------------------------------


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
    axes = principal_axes(double, batches)
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
    slice_hidden(double, principal_axes(double, padded(texts)), 24)
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
    axes = principal_axes(double, padded(texts))
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


# -- what is refused -----------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (peer("DepthPruningModifier", pruning_ratio=0.95), BudgetError, "dropping layers"),
        (peer("DepthPruningModifier", skip_first=3), BudgetError, "at most 0.0000"),
        (peer("HiddenSlicingModifier", multiple_of=24), BudgetError, "steps of 24"),
        (peer("HiddenSlicingModifier", pruning_ratio=1.5), RecipeError, "less than 1"),
        (peer("DepthPruningModifier", layers=3), RecipeError, "unknown field 'layers'"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence(fresh, texts, text, error, message):
    model = fresh()
    before = logits(model)
    with pytest.raises(error, match=message):
        run(model, texts, text)
    assert torch.equal(logits(model), before)


def test_no_data_and_other_architectures_are_refused(fresh, texts, tmp_path):
    with pytest.raises(CalibrationError, match="needs calibration data"):
        oneshot(model=fresh(), recipe=peer("DepthPruningModifier"))
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=32, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="LlamaForCausalLM only"):
        run(str(tmp_path), texts, peer("HiddenSlicingModifier"))


def test_quantization_before_is_refused(fresh, texts):
    stages = {
        "t_stage": {
            "q_modifiers": {"QuantizationModifier": {"scheme": "W8A16", "targets": "Linear"}},
            "p_modifiers": {"DepthPruningModifier": {"pruning_ratio": 0.2}},
        }
    }
    with pytest.raises(RecipeError, match="put pruning first"):
        run(fresh(), texts, yaml.safe_dump(stages, sort_keys=False))
