"""The checkpoint for servers: what it says follows the rules by which they read it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from funcnet_plugin.checkpoints.loading import model_without_weights
from funcnet_plugin.errors import CheckpointError, FuncnetError
from funcnet_plugin.export import export_model
from funcnet_plugin.export.decilm import Block, width_of
from funcnet_plugin.hosts.llmcompressor.modifiers import (
    FunctionalNetworkModifier,
    HiddenSlicingModifier,
    WidthPruningModifier,
)
from funcnet_plugin.preflight import check_form
from tests.conftest import make_llama
from tests.export.test_gguf import checkpoint
from tests.hosting import IDS, WITHOUT_US, logits, networks, reload_without_us

SHAPE = {"vocab_size": 300, "hidden_size": 96, "intermediate_size": 768}
WIDTHS = (768, 256, 512)


def export(folder, widths=WIDTHS, **changes):
    source = checkpoint(folder / "model", make_llama(**SHAPE | changes), widths)
    export_model(source, folder / "out", "nemotron-nas")
    return source, folder / "out"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("widths", [WIDTHS, (512, 512, 512)])
def test_plain_transformers_builds_it_from_its_own_code(tmp_path, widths, tied):
    source, out = export(tmp_path, widths, tie_word_embeddings=tied)
    expected = logits(AutoModelForCausalLM.from_pretrained(source))
    assert torch.equal(reload_without_us(out, trust_remote_code=True), expected)


def test_the_code_builds_the_bare_model_writes_and_saves_again(tmp_path):
    source, out = export(tmp_path, tie_word_embeddings=False)
    code = (
        "import sys, torch\n"
        "from transformers import AutoModel, AutoModelForCausalLM\n"
        "out, again, ids, target = sys.argv[1:]\n"
        "ids = torch.load(ids)\n"
        "load = {'trust_remote_code': True, 'dtype': torch.float32}\n"
        "bare = AutoModel.from_pretrained(out, **load).eval()\n"
        "model = AutoModelForCausalLM.from_pretrained(out, **load).eval()\n"
        "model.save_pretrained(again)\n"
        "model = AutoModelForCausalLM.from_pretrained(again, **load).eval()\n"
        "with torch.no_grad():\n"
        "    hidden = bare(ids).last_hidden_state\n"
        "    written = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)\n"
        "torch.save((hidden, written), target)\n"
    )
    torch.save(IDS, tmp_path / "ids.pt")
    given = [out, tmp_path / "again", tmp_path / "ids.pt", tmp_path / "found.pt"]
    subprocess.run([sys.executable, "-c", code, *given], check=True, env=WITHOUT_US)
    hidden, written = torch.load(tmp_path / "found.pt")
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        assert torch.equal(hidden, model.model(IDS).last_hidden_state)
        expected = model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert torch.equal(written, expected)


def test_every_reader_finds_the_widths_of_the_weights(tmp_path):
    """vLLM, SGLang and TensorRT-LLM take ffn_mult as it is; MLX-LM rounds it to six places."""
    _, out = export(tmp_path)
    config = json.loads((out / "config.json").read_text())
    weights = load_file(out / "model.safetensors")
    for number, block in enumerate(config["block_configs"]):
        width = len(weights[f"model.layers.{number}.mlp.gate_proj.weight"])
        assert width == WIDTHS[number]
        for multiple in (block["ffn"]["ffn_mult"], round(block["ffn"]["ffn_mult"], 6)):
            assert width_of(multiple, config["hidden_size"]) == width
        keys = len(weights[f"model.layers.{number}.self_attn.k_proj.weight"])
        size = config["hidden_size"] // config["num_attention_heads"]
        heads = config["num_attention_heads"] // block["attention"]["n_heads_in_group"]
        assert keys == heads * size
        for part in ("attention", "ffn"):
            assert block[part]["no_op"] is False and block[part]["replace_with_linear"] is False
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["model_type"] == "nemotron-nas" and "per_layer_config" not in config
    assert config["functional_network"]["kept_widths"] == list(WIDTHS)
    assert config["rope_theta"] == 10000.0 and config["rope_scaling"] is None


@pytest.mark.parametrize("hidden", [576, 2048, 4096, 5120, 8192, 96])
def test_no_width_is_lost_to_rounding(hidden):
    for width in range(256, 40961, 256):
        multiple = 3 * width / (2 * hidden)
        assert width_of(multiple, hidden) == width_of(round(multiple, 6), hidden) == width


def test_positions_are_told_as_older_programs_read_them(tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    source, out = export(tmp_path, rope_parameters=rope)
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == rope.pop("rope_theta") and config["rope_scaling"] == rope
    expected = logits(AutoModelForCausalLM.from_pretrained(source))
    assert torch.equal(reload_without_us(out, trust_remote_code=True), expected)


def test_a_block_reads_like_an_object_and_lacks_what_it_lacks():
    block = Block({"ffn": {"ffn_mult": 2.0}})
    assert block.ffn.ffn_mult == 2.0 and not hasattr(block.ffn, "intermediate_size")


def mistral(**changes):
    torch.manual_seed(0)
    sizes = SHAPE | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(**sizes, **changes))


def test_mistral_without_a_window_is_a_llama(tmp_path):
    source = checkpoint(tmp_path / "model", mistral(sliding_window=None), (256, 512))
    export_model(source, tmp_path / "out", "nemotron-nas")
    expected = logits(AutoModelForCausalLM.from_pretrained(source))
    found = reload_without_us(tmp_path / "out", trust_remote_code=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_llama(**SHAPE, mlp_bias=True), "has the bias model.layers.0.mlp"),
        (lambda: make_llama(**SHAPE, attention_bias=True), "has the bias model.layers.0.self_attn"),
        (lambda: make_llama(**SHAPE, head_dim=32), "heads of 32, and MLX-LM wants heads that fill"),
        (lambda: make_llama(**SHAPE, hidden_act="gelu"), "has the activation gelu, and what reads"),
        (lambda: mistral(sliding_window=64), "looks back 64 tokens only"),
        (
            lambda: make_llama(
                **SHAPE,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            ),
            "type dynamic; nemotron-nas is written with default, linear and llama3",
        ),
    ],
)
def test_what_one_of_the_readers_would_compute_otherwise_is_refused(tmp_path, make, message):
    source = checkpoint(tmp_path / "model", make())
    with pytest.raises(CheckpointError, match=message):
        export_model(source, tmp_path / "out", "nemotron-nas")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((768, 480, 512), r"layer 1 of .* has 480 neurons.*nearest of which are 256 and 512"),
        ((64, 256, 512), r"layer 0 of .* has 64 neurons.*nearest of which is 256"),
    ],
)
def test_widths_off_the_grid_are_refused_with_the_nearest(tmp_path, widths, message):
    source = checkpoint(tmp_path / "model", make_llama(**SHAPE), widths)
    with pytest.raises(CheckpointError, match=message):
        export_model(source, tmp_path / "out", "nemotron-nas")
    assert not (tmp_path / "out").exists()


def test_a_recipe_off_the_grid_is_refused_before_it_runs(tmp_path):
    model = model_without_weights(checkpoint(tmp_path / "model", make_llama(**SHAPE)))

    def check(align, model=model):
        modifier = FunctionalNetworkModifier(pruning_ratio=0.2, align=align, scorer=networks())
        modifier.plan(model, None)
        check_form("nemotron-nas", model, [modifier])

    check(256)
    with pytest.raises(FuncnetError, match="keeps multiples of 128; set align: 256"):
        check(128)
    biased = model_without_weights(
        checkpoint(tmp_path / "biased", make_llama(**SHAPE, mlp_bias=True))
    )
    with pytest.raises(CheckpointError, match="has the bias"):
        check(256, biased)


def test_what_a_recipe_adds_that_the_form_has_not_is_refused_before_it_runs(tmp_path):
    model = model_without_weights(checkpoint(tmp_path / "model", make_llama(**SHAPE)))
    biased = WidthPruningModifier(pruning_ratio=0.2, align=256, repair="bias")
    biased.plan(model, None)
    with pytest.raises(FuncnetError, match="holds no biases, and the repair of the recipe adds"):
        check_form("nemotron-nas", model, [biased])
    for form in ("nemotron-nas", "gguf:f16"):
        with pytest.raises(FuncnetError, match="HiddenSlicingModifier leaves another architecture"):
            check_form(form, model, [HiddenSlicingModifier(pruning_ratio=0.2)])
