"""Several runs on one model: everything is told of the first source."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.checkpoints.block import read_block, read_kept, read_layers
from funcnet_plugin.errors import CheckpointError, RecipeError
from funcnet_plugin.export import export_model
from funcnet_plugin.hosts.lm_eval import _silence
from tests.conftest import make_llama, make_tokenizer
from tests.hosting import logged, logits, run
from tests.hosts.llmcompressor.test_quantization import W8A8

pytestmark = pytest.mark.usefixtures("forget_the_session")

WIDTH = {"WidthPruningModifier": {
    "pruning_ratio": 0.25, "ratio_scope": "mlp", "align": 4, "scorer": "effect",
    "repair": "none",
}}  # fmt: skip
THRESHOLD = {"WidthPruningModifier": WIDTH["WidthPruningModifier"] | {"allocation": "threshold"}}
DEPTH = {"DepthPruningModifier": {"pruning_ratio": 0.2}}
SLICE = {"HiddenSlicingModifier": {"pruning_ratio": 0.2, "multiple_of": 2}}


def text(*modifiers) -> str:
    merged = {name: fields for one in modifiers for name, fields in one.items()}
    return yaml.safe_dump({"t_stage": {"p_modifiers": merged}}, sort_keys=False)


@pytest.fixture
def dense(tmp_path) -> Path:
    path = tmp_path / "dense"
    make_llama(num_hidden_layers=5).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def load(path):
    return AutoModelForCausalLM.from_pretrained(path)


CHAINS = {
    "depth and width in one recipe": [(DEPTH, WIDTH)],
    "width twice": [(WIDTH,), (WIDTH,)],
    "widths per layer twice": [(THRESHOLD,), (THRESHOLD,)],
    "depth twice": [(DEPTH,), (DEPTH,)],
    "depth, then width": [(DEPTH,), (WIDTH,)],
    "width, then depth": [(WIDTH,), (DEPTH,)],
    "width, depth, width": [(WIDTH,), (DEPTH,), (THRESHOLD,)],
    "depth and width, twice": [(DEPTH, WIDTH), (DEPTH, WIDTH)],
    "width, then width and quantization": [(WIDTH,), (WIDTH, W8A8)],
}


@pytest.mark.parametrize("through", ["memory", "checkpoints"])
@pytest.mark.parametrize("name", CHAINS)
def test_layers_and_neurons_are_those_of_the_first_source(dense, texts, tmp_path, name, through):
    model = load(dense)
    for i, modifiers in enumerate(CHAINS[name]):
        out = tmp_path / f"run{i}"
        model = run(model, texts, text(*modifiers), output_dir=str(out))
        if through == "checkpoints" and i + 1 < len(CHAINS[name]):
            model = load(out)
    source, block = load(dense), read_block(out)
    assert block["source_model"] == str(dense)
    assert block["parameters_before"] == source.num_parameters()
    runs = [next(iter(m)) for modifiers in CHAINS[name] for m in modifiers if m is not W8A8]
    assert [one["modifier"] for one in block["runs"]] == runs
    for earlier, later in zip(block["runs"], block["runs"][1:], strict=False):
        assert later["parameters_before"] == earlier["parameters_after"]
    assert block["runs"][-1]["parameters_after"] == block["parameters_after"]
    share = 1 - block["parameters_after"] / block["parameters_before"]
    assert block["pruning_ratio_overall"] == pytest.approx(share)
    # every layer and neuron that is left has the weights of the one that is named
    layers = block.get("kept_layers", range(5))
    found = bind(model).blocks
    assert len(layers) == len(found)
    if "WidthPruningModifier" in runs:
        widths, kept = read_kept(out)
        assert widths == block["original_widths"] == [48] * len(layers)
        assert block["kept_widths"] == [len(k) for k in kept] == bind(model).widths
        assert read_layers(out) == block.get("kept_layers")
    else:
        kept = [list(range(48))] * len(layers)
        assert not (out / "kept_neurons.json").exists()
    if W8A8 in CHAINS[name][-1]:
        return  # the weights are rounded
    for number, neurons, after in zip(layers, kept, found, strict=True):
        before = source.model.layers[number].mlp
        assert torch.equal(after.gate.weight, before.gate_proj.weight[neurons])
        assert torch.equal(after.down.weight, before.down_proj.weight[:, neurons])


def test_a_mask_of_two_runs_is_what_they_left(dense, texts, tmp_path):
    model = run(load(dense), texts, text(WIDTH), output_dir=str(tmp_path / "once"))
    model = run(load(tmp_path / "once"), texts, text(WIDTH), output_dir=str(tmp_path / "twice"))
    masked = load(dense)
    _silence(masked, *read_kept(tmp_path / "twice"), str(tmp_path / "twice"))
    torch.testing.assert_close(logits(masked), logits(model), atol=1e-5, rtol=1e-5)


def test_a_mask_of_fewer_layers_is_for_these_layers_only(dense, texts, tmp_path):
    run(load(dense), texts, text(DEPTH), output_dir=str(tmp_path / "layers"))
    out = tmp_path / "both"
    model = run(load(tmp_path / "layers"), texts, text(WIDTH), output_dir=str(out))
    masked = load(tmp_path / "layers")
    _silence(masked, *read_kept(out), str(out))
    torch.testing.assert_close(logits(masked), logits(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="cannot take layers out"):
        _silence(load(dense), *read_kept(out), str(out))


def test_a_model_that_was_saved_is_pruned_on_in_memory(dense, texts, tmp_path):
    """transformers leaves the name of the dtype in the config of a model that it saved."""
    model = load(dense)
    model.save_pretrained(tmp_path / "copy")
    assert model.config.dtype == "float32"
    run(model, texts, text(WIDTH), output_dir=str(tmp_path / "out"))
    assert read_block(tmp_path / "out")["parameters_before"] == load(dense).num_parameters()


def test_slicing_is_remembered_by_the_run_after_it(dense, texts, tmp_path):
    out = tmp_path / "out"
    run(load(dense), texts, text(SLICE, WIDTH), output_dir=str(out))
    block = read_block(out)
    assert block["original_hidden_size"] == 24 and block["hidden_size"] < 24
    assert block["parameters_before"] == load(dense).num_parameters()
    assert len(block["runs"]) == 2 and block["original_widths"] == [48] * 5


def test_one_run_has_no_list_of_runs(dense, texts, tmp_path):
    run(load(dense), texts, text(WIDTH), output_dir=str(tmp_path / "out"))
    block = read_block(tmp_path / "out")
    assert "runs" not in block and "pruning_ratio_overall" not in block
    assert "layers" not in json.loads((tmp_path / "out" / "kept_neurons.json").read_text())


def test_where_the_kept_neurons_are_lost_the_report_begins_anew(dense, texts, tmp_path):
    run(load(dense), texts, text(WIDTH), output_dir=str(tmp_path / "once"))
    (tmp_path / "once" / "kept_neurons.json").unlink()
    with logged() as lines:
        run(load(tmp_path / "once"), texts, text(WIDTH), output_dir=str(tmp_path / "twice"))
    assert any("counts from the model that it found" in line for line in lines)
    block = read_block(tmp_path / "twice")
    assert block["source_model"] == str(tmp_path / "once")
    assert block["original_widths"] == [load(tmp_path / "once").config.intermediate_size] * 5


def test_a_padded_checkpoint_is_pruned_as_a_model_of_its_own(dense, texts, tmp_path):
    """Its layers are wider than what the first run left, by neurons that stand for nothing."""
    uneven = {"WidthPruningModifier": {"pruning_ratio": 0.2, "align": 4, "allocation": "threshold"}}
    run(load(dense), texts, text(uneven), output_dir=str(tmp_path / "once"))
    export_model(tmp_path / "once", tmp_path / "padded", "padded")
    assert len(set(read_block(tmp_path / "once")["kept_widths"])) > 1
    with logged() as lines:
        run(load(tmp_path / "padded"), texts, text(WIDTH), output_dir=str(tmp_path / "twice"))
    assert any("its layers have other widths since" in line for line in lines)
    block = read_block(tmp_path / "twice")
    assert block["original_widths"] == [load(tmp_path / "padded").config.intermediate_size] * 5


def test_layers_are_not_dropped_after_a_cut_of_the_same_recipe(dense, texts):
    with pytest.raises(RecipeError, match="put DepthPruningModifier first"):
        run(load(dense), texts, text(WIDTH, DEPTH))
