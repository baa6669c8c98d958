from pathlib import Path

import pytest
import yaml

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS, FunctionalNetworkModifier
from funcnet_plugin.recipe import (
    MODIFIER_NAMES,
    dump_recipe,
    load_recipe,
    override,
    pruning_modifier,
    recipe_path,
)

GOOD = "s_stage: {p_modifiers: {FunctionalNetworkModifier: {pruning_ratio: 0.2}}}"


def test_the_names_that_autoload_knows_are_the_modifiers():
    assert set(MODIFIERS) == MODIFIER_NAMES


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("ica_prune", []),
        ("ica_prune_best", []),
        ("ica_prune_paper", []),
        ("ica_prune_gptq", ["GPTQModifier"]),
        ("ica_prune_fp8", ["QuantizationModifier"]),
        ("ica_prune_w8a8", ["GPTQModifier"]),
    ],
)
def test_packaged_recipes_are_read_by_llm_compressor(name, then):
    from llmcompressor.recipe import Recipe

    load_recipe(recipe_path(name))
    modifier, *others = Recipe.create_instance(str(recipe_path(name))).modifiers
    assert isinstance(modifier, FunctionalNetworkModifier)
    assert [type(other).__name__ for other in others] == then
    again = Recipe.create_instance(Recipe(modifiers=[modifier]).yaml())
    assert again.modifiers[0].model_dump() == modifier.model_dump()


def test_the_two_best_recipes_differ_by_the_networks_alone():
    width, networks = (
        MODIFIERS[name](**fields).model_dump()
        for name, fields in map(
            pruning_modifier, map(load_recipe, map(recipe_path, ("prune_best", "ica_prune_best")))
        )
    )
    same = set(width) - {"scorer", "union_with"}
    assert {key: width[key] for key in same} == {key: networks[key] for key in same}
    assert width["scorer"] == networks["union_with"]


def test_the_recipes_with_quantization_prune_like_the_plain_one():
    plain = Path(recipe_path("ica_prune")).read_text()
    (fields,) = yaml.safe_load(plain)["prune_stage"]["pruning_modifiers"].values()
    for name in ("ica_prune_gptq", "ica_prune_fp8", "ica_prune_w8a8"):
        stage = load_recipe(recipe_path(name))["prune_stage"]
        (same,) = stage["pruning_modifiers"].values()
        assert same.items() <= fields.items(), name


def test_the_paper_recipe_states_every_setting_of_the_method():
    """What the file leaves out would follow our defaults, which are not the paper's."""
    modifiers = load_recipe(recipe_path("ica_prune_paper"))["prune_stage"]["pruning_modifiers"]
    fields = modifiers["FunctionalNetworkModifier"]
    left_out = set(FunctionalNetworkModifier.model_fields) - set(fields)
    host = {"index", "group", "start", "end", "update", "initialized_", "finalized_", "started_",
            "ended_", "requires_calibration_data"}  # fmt: skip
    assert left_out - host == {
        "scorer",  # fixed
        "ridge",  # of least squares only
        "reconstruction_epochs",  # of another repair, as the next
        "continuations",
        "ignore",  # none
        "max_memory",  # no part of the method
        "resume_dir",
        "networks_share",  # of runs with another scorer, as the next four
        "token_share",
        "own_text",
        "fisher_labels",
        "union_with",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty"),
        ("[1, 2]", "the recipe is empty"),
        ("a: [", "not valid YAML"),
        ("FunctionalNetworkModifier: {pruning_ratio: 0.2}", "ignores the top-level key"),
        ("prune: {p_modifiers: {A: {}}}", "ignores the top-level key 'prune'"),
        ("s_stage: {FunctionalNetworkModifier: {}}", "ignores the key s_stage.FunctionalNetwork"),
        ("s_stage: {p_modifiers: {FunctionalNetworkModifier: }}", "holds nothing"),
        ("s_stage: {p_modifiers: {FunctionalNetworkModifier: {group: x}}}", "field 'group'"),
        ("s_stage: {p_modifiers: {}}", "names no modifier"),
        ("s_stage: 3", "s_stage holds 3"),
    ],
)
def test_shapes_that_llm_compressor_reads_as_empty_are_refused(text, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(text)
    assert "\n" not in str(error.value)


def test_the_order_of_modifiers_stays():
    """It decides what they see: smoothing, pruning, quantization."""
    text = """
    z_stage:
      z_modifiers: {SmoothQuantModifier: {}, FunctionalNetworkModifier: {pruning_ratio: 0.2}}
      a_modifiers: {QuantizationModifier: {}}
    a_stage: {b_modifiers: {GPTQModifier: {}}}
    """
    changed = load_recipe(dump_recipe(override(load_recipe(text), {"align": 8})))
    assert list(changed) == ["z_stage", "a_stage"]
    assert list(changed["z_stage"]) == ["z_modifiers", "a_modifiers"]
    assert list(changed["z_stage"]["z_modifiers"]) == [
        "SmoothQuantModifier", "FunctionalNetworkModifier",
    ]  # fmt: skip


def test_packaged_recipes_have_names():
    assert load_recipe("prune_best") == load_recipe(recipe_path("prune_best"))
    with pytest.raises(RecipeError, match="names GPTQModifier"):
        override(load_recipe("s_stage: {p_modifiers: {GPTQModifier: {}}}"), {})


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.yaml cannot be read"):
        load_recipe(tmp_path / "gone.yaml")


def test_override_sets_fields_and_leaves_the_recipe_alone():
    recipe = load_recipe(GOOD)
    changed = override(recipe, {"align": 8})
    assert yaml.safe_load(dump_recipe(changed)) == {
        "s_stage": {
            "p_modifiers": {"FunctionalNetworkModifier": {"pruning_ratio": 0.2, "align": 8}}
        }
    }
    assert recipe == load_recipe(GOOD)
    with pytest.raises(RecipeError, match="0 pruning modifiers"):
        override(load_recipe("s_stage: {p_modifiers: {GPTQModifier: {}}}"), {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field 'pruning_ratio' is missing"),
        ({"pruning_ratio": 0.2, "ratoi": 1}, "unknown field 'ratoi' .*known: .*pruning_ratio"),
        ({"pruning_ratio": "much"}, "pruning_ratio='much'"),
        ({"pruning_ratio": 0.2, "allocation": "even"}, "allocation='even': .*uniform.*threshold"),
        ({"pruning_ratio": 0.2, "decomposer": "pca"}, "decomposer='pca': .*canica.*nilearn"),
        ({"pruning_ratio": 0.2, "signals": ["gate"]}, r"signals.*'gate'"),
        ({"pruning_ratio": 0.2, "align": 0}, "align=0"),
    ],
)
def test_wrong_fields_are_one_clear_sentence(fields, message):
    with pytest.raises(RecipeError, match=message) as error:
        FunctionalNetworkModifier(**fields)
    assert "\n" not in str(error.value)
