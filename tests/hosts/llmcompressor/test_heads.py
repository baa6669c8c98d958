"""Heads cut with neurons under one ratio, in llm-compressor's `oneshot`."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from funcnet_plugin.adapters import bind
from funcnet_plugin.adapters.attention import bind_attention
from funcnet_plugin.checkpoints.block import read_block, read_heads, read_kept
from funcnet_plugin.cut.surgery import cut
from funcnet_plugin.errors import AdapterError, RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS
from funcnet_plugin.measure.moments import Moments
from funcnet_plugin.measure.offloading import sent_as_needed
from funcnet_plugin.repair.least_squares import least_squares
from funcnet_plugin.run import head_cuts
from funcnet_plugin.score.group_elimination import eliminate_groups
from tests.families import FAMILIES
from tests.hosting import IDS, loader, logits, recipe, reload_without_us, run
from tests.run.test_resume import interrupted

pytestmark = pytest.mark.usefixtures("forget_the_session")

WIDTH = "WidthPruningModifier"
HALF = {"heads_ratio": 0.5, "pruning_ratio": 0.3, "repair": "least_squares"}


def heads_recipe(then=None, name=WIDTH, **fields):
    return recipe(name, then=then, **HALF | fields)


def attention_inputs(model, batches):
    """What enters each output projection of the attention, (tokens, columns)."""
    units = bind_attention(model, "model.layers")
    moments = [Moments(unit.n_columns) for unit in units]
    hooks = [
        unit.output.register_forward_pre_hook(
            lambda m, args, i=i: moments[i].add(args[0].flatten(0, 1))
        )
        for i, unit in enumerate(units)
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return units, moments


@pytest.mark.parametrize("name", [WIDTH, "FunctionalNetworkModifier"])
def test_heads_and_neurons_share_one_ratio_and_stock_transformers_loads_the_rest(
    checkpoint, texts, tmp_path, name
):
    out = tmp_path / "out"
    dense = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = run(str(checkpoint), texts, heads_recipe(name=name), output_dir=str(out))
    config = json.loads((out / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert config["head_dim"] == 6
    assert torch.equal(reload_without_us(out), logits(model))
    eager = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    torch.testing.assert_close(logits(eager), logits(model), rtol=1e-4, atol=1e-4)
    again = AutoModelForCausalLM.from_pretrained(out)
    written = [m.generate(IDS, max_new_tokens=5, do_sample=False) for m in (model, again)]
    assert torch.equal(*written)
    block = read_block(out)
    assert block["parameters_after"] == again.num_parameters() == model.num_parameters()
    removed = dense.num_parameters() - again.num_parameters()
    width = bind(again).widths[0]
    # a group of each layer: 12 + 6 + 6 rows of 24, 12 columns of 24; and neurons for the rest
    assert removed == 3 * 36 * 24 + 3 * (48 - width) * 72
    assert abs(removed - 0.3 * dense.num_parameters()) <= 4 * 72 * 3 / 2
    assert block["original_key_value_heads"] == 2 and block["kept_key_value_heads"] == 1
    assert block["settings"]["heads_ratio"] == 0.5
    assert read_heads(out) == block["kept_heads"]
    assert [len(kept) for kept in block["kept_heads"]] == [1, 1, 1]


def test_heads_go_whose_removal_costs_least_and_their_outputs_are_repaired(fresh, texts):
    """The same from moments that are measured here, by hooks on the whole dense model."""
    expected = fresh()
    units, moments = attention_inputs(expected, loader(texts))
    for unit, found in zip(units, moments, strict=True):
        score, _ = eliminate_groups(unit, found.second)
        keep = score.argmax(keepdim=True)
        columns = unit.columns_of(keep)
        cut(unit, keep, least_squares(unit.out.weight.detach(), found.second, columns, 0.02))
    model = run(fresh(), texts, heads_recipe())
    for unit, other in zip(bind_attention(model, "model.layers"), units, strict=True):
        for mine, theirs in zip(unit.weights, other.weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_layers_that_are_sent_to_be_cut_come_back_the_same(fresh, texts, monkeypatch):
    """With the CPU in the GPU's place."""
    expected = run(fresh(), texts, heads_recipe()).state_dict()
    sent = []

    def send(model):
        sent.append(model)
        return sent_as_needed(model, torch.device("cpu"))

    monkeypatch.setattr(head_cuts, "layer_by_layer", send)
    found = run(fresh(), texts, heads_recipe()).state_dict()
    assert len(sent) == 1
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_mask_silences_heads_too(checkpoint, texts, tmp_path):
    """What `repair: none` cuts is what the mask of the run silences in the dense model."""
    from funcnet_plugin.hosts.lm_eval import _silence

    out = tmp_path / "out"
    model = run(str(checkpoint), texts, heads_recipe(repair="none"), output_dir=str(out))
    dense = AutoModelForCausalLM.from_pretrained(checkpoint)
    _silence(dense, *read_kept(out), out)
    torch.testing.assert_close(logits(dense), logits(model), rtol=0, atol=1e-5)


def test_quantization_after_cut_heads_is_that_of_the_pruned_model(checkpoint, texts, tmp_path):
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    then = {"GPTQModifier": {"config_groups": groups, "ignore": ["lm_head"]}}
    places = {name: str(tmp_path / name) for name in ("together", "pruned", "apart")}
    run(str(checkpoint), texts, heads_recipe(then), output_dir=places["together"])
    run(str(checkpoint), texts, heads_recipe(), output_dir=places["pruned"])
    alone = yaml.safe_dump({"t_stage": {"q_modifiers": then}})
    run(places["pruned"], texts, alone, output_dir=places["apart"])
    together, apart = (
        AutoModelForCausalLM.from_pretrained(places[name]) for name in ("together", "apart")
    )
    assert together.config.num_key_value_heads == 1
    assert torch.equal(logits(together), logits(apart))


def test_groups_of_weights_that_do_not_fit_the_heads_left_are_refused(fresh, texts):
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}
    groups = {"group_0": {"targets": ["re:.*o_proj"], "weights": weights}}
    then = {"GPTQModifier": {"config_groups": groups}}
    with pytest.raises(
        RecipeError, match=r"groups of 8, .* the 12 inputs that cutting heads leaves"
    ):
        run(fresh(), texts, heads_recipe(then))


@pytest.mark.parametrize("repair", ["none", "least_squares", "distillation"])
@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_every_repair_and_allocation_goes_with_heads(fresh, texts, tmp_path, repair, allocation):
    model = run(fresh(), texts, heads_recipe(repair=repair, allocation=allocation))
    model.save_pretrained(tmp_path)
    assert model.config.num_key_value_heads == 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("allocation", ["uniform", "threshold"])
def test_a_run_with_heads_goes_on_bit_for_bit(fresh, texts, tmp_path, monkeypatch, allocation):
    fields = {"allocation": allocation, "scorer": "effect"}
    expected = logits(run(fresh(), texts, heads_recipe(**fields)))
    text = heads_recipe(resume_dir=str(tmp_path / "finished"), **fields)
    interrupted(fresh(), texts, text, monkeypatch)
    assert torch.equal(logits(run(fresh(), texts, text)), expected)


@pytest.mark.parametrize("cheap", [1, 2])
def test_auto_takes_the_number_that_costs_the_layers_least(fresh, texts, monkeypatch, cheap):
    """By figures that are put in here: what attention loses is nothing, or more than all."""

    def eliminated(unit, second):
        score, cost = eliminate_groups(unit, second)
        return score, cost * (0.0 if cheap == 1 else 1e9)

    monkeypatch.setattr(head_cuts, "eliminate_groups", eliminated)
    dense = fresh()
    model = run(fresh(), texts, heads_recipe(heads_ratio="auto"))
    assert model.config.num_key_value_heads == cheap
    reached = 1 - model.num_parameters() / dense.num_parameters()
    assert reached == pytest.approx(0.3, abs=0.02)


def test_a_second_run_keeps_account_of_the_first_source(texts, tmp_path):
    settings = FAMILIES["mistral"].settings | {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = replace(FAMILIES["mistral"], settings=settings).build()
    model.save_pretrained(tmp_path / "dense")
    source, kept = tmp_path / "dense", [[0, 1, 2, 3]] * 3
    for name, left in (("first", 3), ("second", 2)):
        fields = {"heads_ratio": 1 - left / len(kept[0]), "pruning_ratio": 0.15}
        out = tmp_path / name
        run(str(source), texts, heads_recipe(**fields), output_dir=str(out))
        own = read_block(out)["runs"][-1] if name == "second" else read_block(out)
        kept = [[old[i] for i in new] for old, new in zip(kept, own["kept_heads"], strict=True)]
        source = out
    block = read_block(source)
    assert block["kept_heads"] == kept == read_heads(source)
    assert block["original_key_value_heads"] == 4 and block["kept_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads_ratio": 1.0}, "at least 0 and less than 1, or auto"),
        ({"heads_ratio": "all"}, "at least 0 and less than 1, or auto"),
        ({"ratio_scope": "mlp"}, "ratio_scope: mlp counts no heads"),
        ({"repair": "bias"}, "repair: bias adds a bias"),
    ],
)
def test_what_does_not_go_with_heads_is_one_sentence(fields, message):
    with pytest.raises(RecipeError, match=message) as error:
        _ = MODIFIERS[WIDTH](**HALF | fields).request
    assert "\n" not in str(error.value)


def test_an_architecture_without_a_place_for_it_is_refused_and_left_alone(texts, tmp_path):
    FAMILIES["stablelm"].build().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    before = logits(model)
    with pytest.raises(AdapterError, match="heads of StableLmForCausalLM cannot be cut"):
        run(model, texts, heads_recipe())
    assert torch.equal(logits(model), before)
