"""`funcnet inspect`: models without their weights, and what is installed."""

import json
import types

import pytest
from pydantic import Field
from typer.testing import CliRunner

from funcnet_plugin import cli
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.plugins import hookimpl
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.score.parts import SCORERS
from tests.conftest import make_llama
from tests.hosting import networks, recipe
from tests.parts import Early

FAST = ["--set", "align=4", "--set", "scorer.networks.n_components=6",
        "--set", "scorer.networks.samples_per_group=8",
        "--samples", "16", "--window", "40"]  # fmt: skip


def call(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


@pytest.mark.parametrize("tied", [False, True])
def test_inspect_needs_no_weights_and_counts_like_the_model(tmp_path, tied):
    model = make_llama(tie_word_embeddings=tied)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    shape = json.loads(
        call("inspect", tmp_path, "--json", "--align", 8, "--ratio", 0.2, "--ratio", 0.9).stdout
    )
    assert shape["parameters"] == model.num_parameters()
    assert shape["widths"] == [48] * 3 and shape["adapter"] == "llama"
    within, beyond = shape["reaches"]
    kept = within["kept_width"]
    assert within["parameters"] == shape["parameters"] - (48 - kept) * 72 * 3
    assert beyond["kept_width"] is None and "at most" in beyond["reason"]


def test_inspect_says_which_heads_can_go(tmp_path):
    model = make_llama(num_attention_heads=8, num_key_value_heads=4)
    model.config.save_pretrained(tmp_path)
    heads = json.loads(call("inspect", tmp_path, "--json", "--align", 8).stdout)["heads"]
    # 6 + 3 + 3 rows of 24 and 6 columns of 24, in three layers; 6, 4 and 2 heads divide 24
    assert heads["parameters"] == 18 * 24 * 3 and heads["possible"] == [1, 2, 3]
    assert heads["key_value_heads"] == 4 and heads["queries"] == 2 and heads["reason"] is None
    assert "heads_ratio can leave 1, 2, 3" in " ".join(call("inspect", tmp_path).output.split())
    make_llama(num_key_value_heads=1).config.save_pretrained(tmp_path)
    assert "share one key-value head" in " ".join(call("inspect", tmp_path).output.split())


def test_inspect_names_an_unknown_architecture(tmp_path):
    config = {"model_type": "rwkv", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = call("inspect", tmp_path)
    assert "no adapter for the architecture 'RwkvForCausalLM'" in str(result.exception)


def test_inspect_lists_the_parts_with_their_defaults():
    rows = json.loads(call("inspect", "--parts", "--json").stdout)
    found = {(row["kind"], row["name"]): row for row in rows}
    registries = {"scorer": SCORERS, "repair": REPAIRS, "decomposer": DECOMPOSERS}
    for kind, registry in registries.items():
        assert [name for of, name in found if of == kind] == list(registry.all())
    assert all(row["source"] == "funcnet_plugin" for row in rows)
    assert {row["name"]: row["required"] for row in rows if row["required"]} == {"atlas": ["path"]}
    assert all(row["about"] for row in rows)
    networks = found["scorer", "networks"]["parameters"]
    assert networks["n_components"] == 128 and networks["decomposer"] == "canica"
    assert found["repair", "distillation"]["parameters"]["epochs"] == 1
    assert found["repair", "none"]["parameters"] == {}
    printed = call("inspect", "--parts").output
    assert "distillation (funcnet_plugin)" in printed and "epochs: 1" in printed


def test_a_part_of_another_package_is_listed_with_what_it_requires():
    class Mine(Early):
        """Scores as I like."""

        name = "mine"
        strength: float
        where: list[str] = Field(default_factory=lambda: ["[here]"])

    parts = types.ModuleType("mine")
    parts.funcnet_scorers = hookimpl(lambda: [Mine], specname="funcnet_scorers")
    SCORERS.manager.register(parts, name="my-package (mine)")
    try:
        rows = json.loads(call("inspect", "--parts", "--json").stdout)
        printed = call("inspect", "--parts").output
    finally:
        SCORERS.manager.unregister(parts)
    (mine,) = (row for row in rows if row["name"] == "mine")
    assert mine == {
        "kind": "scorer", "name": "mine", "source": "my-package (mine)",
        "parameters": {"where": ["[here]"]}, "required": ["strength"],
        "about": "Scores as I like.",
    }  # fmt: skip
    assert "mine (my-package (mine))" in printed and "strength (required)" in printed
    assert "where: ['[here]']" in printed


def needs(tmp_path, recipe, *more):
    make_llama().config.save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe)
    return call("inspect", tmp_path, "--recipe", tmp_path / "recipe.yaml", *more)


def test_inspect_shows_the_memory_of_a_recipe_without_weights(tmp_path):
    text = recipe(scorer=networks(), repair="distillation")
    shown = needs(tmp_path, text, "--samples", 64, "--length", 100, "--json")
    found = json.loads(shown.stdout)["memory"]
    assert [stage["stage"] for stage in found["stages"]] == [
        "predictions of the dense model", "calibration", "scoring", "cut and repair",
        "distillation", "saving",
    ]  # fmt: skip
    for figure in ("gpu", "host", "host_without_gpu"):
        assert found["most"][figure] == max(stage[figure] for stage in found["stages"]) > 0
    assert found["others"] == [] and found["samples"] == 64
    more = json.loads(needs(tmp_path, text, "--samples", 640, "--length", 100, "--json").stdout)
    assert more["memory"]["most"]["host"] > found["most"]["host"]
    table = needs(tmp_path, text, "--samples", 64, "--length", 100).stdout
    assert "memory for 64 samples of 100 tokens" in table and "cut and repair" in table


def test_inspect_leaves_the_memory_of_quantization_to_llm_compressor(tmp_path):
    then = {"QuantizationModifier": {"targets": "Linear", "scheme": "FP8_DYNAMIC"}}
    shown = needs(tmp_path, recipe(scorer=networks(), then=then)).stdout
    assert "and llm-compressor's own for QuantizationModifier" in shown


def test_inspect_knows_the_memory_of_width_pruning_only(tmp_path):
    text = "s_stage: {p_modifiers: {DepthPruningModifier: {pruning_ratio: 0.3}}}"
    result = needs(tmp_path, text)
    assert "DepthPruningModifier" in str(result.exception)
