from pathlib import Path

import pytest
import yaml

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import (
    MODIFIERS,
    FunctionalNetworkModifier,
    WidthPruningModifier,
)
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.recipe import (
    MODIFIER_NAMES,
    dump_recipe,
    load_recipe,
    override,
    pruning_modifier,
    recipe_path,
)
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.score.parts import SCORERS

GOOD = "s_stage: {p_modifiers: {FunctionalNetworkModifier: {pruning_ratio: 0.2}}}"


def with_networks(**parameters) -> dict:
    """Fields with a scorer of networks that has these parameters."""
    return {"pruning_ratio": 0.2, "scorer": {"name": "networks"} | parameters}


def test_the_names_that_autoload_knows_are_the_modifiers():
    assert set(MODIFIERS) == MODIFIER_NAMES


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("ica_prune", []),
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
        "ignore",  # none
        "max_memory",  # no part of the method
        "atlas",
        "resume_dir",
        "text_cache",
        "own_text",  # all text is given
        "heads_ratio",  # neurons alone
    }
    scorer = fields["scorer"]
    for registry, part in ((SCORERS, scorer), (DECOMPOSERS, scorer["decomposer"])):
        assert set(part) == {"name", *registry.all()[part["name"]].parameters()}
    assert not REPAIRS.all()[fields["repair"]].parameters()


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


@pytest.mark.parametrize("name", ["prune_bset", "recipes/mine", "ica_prune.yml"])
def test_a_name_of_no_recipe_is_called_that(name):
    with pytest.raises(RecipeError, match=rf"{name}.*one of ica_prune, .*prune_fast"):
        load_recipe(name)


def test_text_that_ends_like_a_file_is_text():
    text = "a_stage:\n  b_modifiers:\n    WidthPruningModifier:\n      align: widths.json"
    assert load_recipe(text)["a_stage"]["b_modifiers"] == {
        "WidthPruningModifier": {"align": "widths.json"}
    }


def test_a_key_that_is_there_twice_is_refused():
    """YAML takes the last, so a whole modifier would be gone."""
    text = "a_stage:\n  b_modifiers:\n    X: {pruning_ratio: 0.2}\n    X: {pruning_ratio: 0.5}\n"
    with pytest.raises(RecipeError, match=r"has X twice in one place \(line 3\)"):
        load_recipe(text)


def test_home_is_read_as_a_shell_does():
    fields = {"resume_dir": "~/run", "text_cache": "~/texts", "atlas": "~/atlas"}
    made = WidthPruningModifier(pruning_ratio=0.2, **fields)
    home = Path.home()
    assert (made.resume_dir, made.text_cache, made.atlas) == (
        str(home / "run"), str(home / "texts"), str(home / "atlas")
    )  # fmt: skip


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


def test_a_field_left_to_its_default_is_set_by_the_name_of_the_part():
    recipe = {"s_stage": {"p_modifiers": {"FunctionalNetworkModifier": {"pruning_ratio": 0.2}}}}
    changed = override(
        recipe, {"scorer.networks.n_components": 6, "scorer.networks.decomposer.n_init": 2}
    )
    assert pruning_modifier(changed)[1]["scorer"] == {
        "name": "networks", "n_components": 6, "decomposer": {"n_init": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name", "value", "expected"),
    [
        ({"repair": "distillation"}, "repair.epochs", 2, {"name": "distillation", "epochs": 2}),
        ({"repair": {"name": "bias", "a": 1}}, "repair.a", 3, {"name": "bias", "a": 3}),
        ({"repair": {"name": "bias", "a": 1}}, "repair", "none", "none"),
        ({"scorer": "a"}, "scorer.a.n", 3, {"name": "a", "n": 3}),
        ({"scorer": "a"}, "scorer.d.n", 3, {"name": "a", "d": {"n": 3}}),
        ({"scorer": {"name": "a", "d": "c"}}, "scorer.a.d.n", 1,
         {"name": "a", "d": {"name": "c", "n": 1}}),
        ({"scorer": ["a", {"name": "b", "n": 1}]}, "scorer.b.n", 2,
         ["a", {"name": "b", "n": 2}]),
        ({"scorer": ["a", "b"]}, "scorer.a.d.n", 2, [{"name": "a", "d": {"n": 2}}, "b"]),
    ],
)  # fmt: skip
def test_dotted_names_lead_to_parameters_of_parts(fields, name, value, expected):
    recipe = {"s_stage": {"p_modifiers": {"WidthPruningModifier": fields}}}
    before = dump_recipe(recipe)
    _, changed = pruning_modifier(override(recipe, {name: value}))
    assert changed == {name.split(".")[0]: expected}
    assert dump_recipe(recipe) == before


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        (
            {},
            "repair.epochs",
            "leaves 'repair' to its default; say of which part, as in repair.NAME.epochs",
        ),
        ({"scorer": ["a", "b"]}, "scorer.n", r"several there; say of which, as in scorer\.a\.n"),
        ({"scorer": ["a", "b"]}, "scorer.c.n", r"several there; say of which, as in scorer\.a\.n"),
        ({"scorer": []}, "scorer.n", "several there; say of which"),
        ({"seed": 3}, "seed.n", "only scorer and repair have parameters"),
    ],
)
def test_dotted_names_that_lead_nowhere_are_refused(fields, name, message):
    recipe = {"s_stage": {"p_modifiers": {"WidthPruningModifier": fields}}}
    with pytest.raises(RecipeError, match=f"{name} cannot be set: .*{message}") as error:
        override(recipe, {name: 1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field 'pruning_ratio' is missing"),
        ({"pruning_ratio": 0.2, "ratoi": 1}, "unknown field 'ratoi' .*known: .*pruning_ratio"),
        ({"pruning_ratio": "much"}, "pruning_ratio='much'"),
        ({"pruning_ratio": 0.2, "allocation": "even"}, "allocation='even': .*uniform.*threshold"),
        (with_networks(decomposer="lda"), "no decomposer 'lda'; .*canica.*nilearn"),
        (with_networks(signals=["gate"]), r"signals.*'gate'"),
        (with_networks(components=3), "networks has no parameter 'components'.*n_components"),
        ({"pruning_ratio": 0.2, "repair": {"name": "bias", "epochs": 3}}, "to distillation"),
        ({"pruning_ratio": 0.2, "align": 0}, "align=0"),
    ],
)
def test_wrong_fields_are_one_clear_sentence(fields, message):
    with pytest.raises(RecipeError, match=message) as error:
        FunctionalNetworkModifier(**fields)
    assert "\n" not in str(error.value)
