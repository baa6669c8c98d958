"""Layers of different widths in plain transformers, where the plugin is installed."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.checkpoints.weights import check_weights
from tests.hosting import IDS, WITHOUT_US, logits, networks, recipe, run

pytestmark = pytest.mark.usefixtures("forget_the_session")

KINDS = {
    "threshold": {"allocation": "threshold", "align": 1, "scorer": [networks(), "effect"]},
    "skipped": {"skip_first": 1},
    "ignored": {"ignore": ["re:.*layers.1.mlp"]},
}
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[3])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_by_plain_transformers(checkpoint, texts, tmp_path, kind):
    out = tmp_path / "out"
    model = run(str(checkpoint), texts, recipe(**KINDS[kind]), output_dir=str(out))
    widths = bind(model).widths
    assert len(set(widths)) > 1
    if kind == "ignored":
        assert widths[1] == 48 > widths[0]
    config = json.loads((out / "config.json").read_text())
    assert config["functional_network"]["kept_widths"] == widths
    assert config["intermediate_size"] == 48
    stated = {int(i): layer["intermediate_size"] for i, layer in config["per_layer_config"].items()}
    assert stated == {i: width for i, width in enumerate(widths) if width != 48}
    assert [len(kept) for kept in read_kept(out)[1]] == widths
    # A process that imports transformers and nothing else
    torch.save(IDS, tmp_path / "ids.pt")
    subprocess.run(
        [sys.executable, "-c", LOAD, out, tmp_path / "ids.pt", tmp_path / "logits.pt"], check=True
    )
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


@pytest.mark.parametrize("kind", ["skipped", "ignored"])
def test_a_layer_that_stays_whole_beside_biased_ones_is_saved_with_a_bias_of_zeros(
    checkpoint, texts, tmp_path, kind
):
    """One switch in the config stands for the biases of all layers."""
    run(
        str(checkpoint), texts, recipe(repair="bias", **KINDS[kind]), output_dir=str(tmp_path / "o")
    )
    check_weights(tmp_path / "o", AutoConfig.from_pretrained(tmp_path / "o"))
    blocks = bind(AutoModelForCausalLM.from_pretrained(tmp_path / "o")).blocks
    whole = [block for block in blocks if block.width == 48]
    assert len(whole) == 1 and not any(p.bias.any() for p in whole[0].projections)
    assert all(block.output.bias.any() for block in blocks if block.width < 48)


@pytest.fixture
def pruned(checkpoint, texts, tmp_path):
    out = tmp_path / "pruned"
    run(str(checkpoint), texts, recipe(**KINDS["threshold"]), output_dir=str(out))
    return out


def test_without_the_plugin_it_fails_loudly(pruned, tmp_path):
    torch.save(IDS, tmp_path / "ids.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, pruned, tmp_path / "ids.pt", tmp_path / "logits.pt"],
        capture_output=True, text=True, env=WITHOUT_US,
    )  # fmt: skip
    assert done.returncode != 0 and "is a per-layer attribute" in done.stderr


def test_resaving_keeps_it_loadable(pruned, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pruned)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert again.config.functional_network == model.config.functional_network


def test_generation_with_cache_equals_generation_without(pruned):
    model = AutoModelForCausalLM.from_pretrained(pruned).eval()
    both = [
        model.generate(IDS[:1, :8], max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*both) and both[0].shape == (1, 20)


def test_every_module_sees_the_shared_config(pruned):
    """Transformers changes it after building: a layer with its own copy would miss that."""
    model = AutoModelForCausalLM.from_pretrained(pruned)
    model.set_attn_implementation("eager")
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    assert len(configs) > 6 and all(config is model.config for config in configs)
    assert torch.allclose(
        logits(model), logits(AutoModelForCausalLM.from_pretrained(pruned)), atol=1e-5
    )


def test_it_can_be_pruned_again_to_one_width(pruned, texts, tmp_path):
    out = tmp_path / "again"
    model = run(str(pruned), texts, recipe(pruning_ratio=0.3, align=8), output_dir=str(out))
    assert len(set(bind(model).widths)) == 1
    config = json.loads((out / "config.json").read_text())
    assert "per_layer_config" not in config
    assert config["intermediate_size"] == model.config.intermediate_size
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))


def test_other_models_are_built_as_before(checkpoint):
    """The wrapper of the layer class stays in the process; a plain model must not notice."""
    config = AutoConfig.from_pretrained(checkpoint)
    config.per_layer_config = {0: {"intermediate_size": 8}}
    with pytest.raises(RuntimeError, match="is a per-layer attribute"):
        # not one of our checkpoints: transformers decides about it
        AutoModelForCausalLM.from_config(config)
    assert bind(AutoModelForCausalLM.from_pretrained(checkpoint)).widths == [48, 48, 48]


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"7": {"intermediate_size": 8}}, "layer indices in the range"),
     ({"1": {"intermediate_size": 13}}, "size mismatch|mismatched")],
)  # fmt: skip
def test_a_config_that_was_edited_wrongly_does_not_load(pruned, entry, message):
    path = pruned / "config.json"
    config = json.loads(path.read_text())
    config["per_layer_config"].update(entry)
    path.write_text(json.dumps(config))
    with pytest.raises((ValueError, RuntimeError), match=message):
        AutoModelForCausalLM.from_pretrained(pruned)
