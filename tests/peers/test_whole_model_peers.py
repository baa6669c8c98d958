"""Dropping layers (ShortGPT, Shortened LLaMA) against the papers' formulas computed another way,
and what no peer can do."""

import copy
import json
import math

import pytest
import torch
import yaml
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from funcnet_plugin.checkpoints.block import read_block
from funcnet_plugin.errors import AdapterError, BudgetError, CalibrationError, RecipeError
from funcnet_plugin.measure.text import Text
from funcnet_plugin.peers.depth import block_influence, drop_layers, perplexity_without
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
    assert block_influence(model, model.model.layers, Text.read(batches)) == pytest.approx(expected)
    assert len(set(expected)) == 3


def test_perplexity_without_a_layer_is_that_of_the_model_without_it(texts):
    model, batches = make_llama(), list(loader(texts, samples=6))
    found = perplexity_without(model, model.model.layers, Text.read(batches))
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


# -- what is refused -----------------------------------------------------------------------------


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
