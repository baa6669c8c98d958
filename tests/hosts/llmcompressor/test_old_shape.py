"""A recipe of the old shape gets one sentence, and what that says is a recipe that works."""

import re

import pytest
import yaml

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS
from funcnet_plugin.ica.parts import DECOMPOSERS
from funcnet_plugin.pruning import prune
from funcnet_plugin.repair.parts import REPAIRS
from funcnet_plugin.score.parts import SCORERS

WIDTH, NETWORKS = "WidthPruningModifier", "FunctionalNetworkModifier"


def canica(**parameters):
    return {"name": "networks", "decomposer": {"name": "canica"} | parameters}


def least(**parameters):
    return {"name": "least_squares"} | parameters


def distilled(**parameters):
    return {"name": "distillation"} | parameters


# modifier, fields of the old shape, what is written now
MOVED = {
    "compensation": (WIDTH, {"compensation": "bias"}, {"repair": "bias"}),
    "compensation, behind layers": (
        WIDTH, {"compensation": "residual_least_squares"}, {"repair": "distillation"},
    ),
    "ridge": (WIDTH, {"ridge": 0.1}, {"repair": least(ridge=0.1)}),
    "ridge of a repair": (
        WIDTH,
        {"compensation": "residual_least_squares", "ridge": 0.1, "continuations": 2},
        {"repair": distilled(continuations=2, ridge=0.1)},
    ),
    "ridge of none": (WIDTH, {"compensation": "none", "ridge": 0.1}, {"repair": "none"}),
    "ridge, chosen": (WIDTH, {"ridge": "auto"}, {"repair": "least_squares"}),
    "ridge beside a new repair": (
        WIDTH,
        {"repair": distilled(epochs=2), "ridge": 0.1},
        {"repair": distilled(epochs=2, ridge=0.1)},
    ),
    "ridge beside a repair that is gone": (
        WIDTH,
        {"repair": {"name": "reconstruction", "epochs": 2}, "ridge": 0.1},
        {"repair": distilled(ridge=0.1)},
    ),
    "reconstruction_epochs": (
        WIDTH,
        {"compensation": "reconstruction", "reconstruction_epochs": 3},
        {"repair": "distillation"},
    ),
    "reconstruction_epochs beside a new repair": (
        WIDTH,
        {"repair": "reconstruction", "reconstruction_epochs": 3},
        {"repair": "distillation"},
    ),
    "continuations": (
        WIDTH,
        {"compensation": "reconstruction", "continuations": 4},
        {"repair": distilled(continuations=4)},
    ),
    "union_with": (
        WIDTH, {"scorer": "flap", "union_with": "taylor"}, {"scorer": ["flap", "taylor"]},
    ),
    "union_with, of the default": (
        WIDTH, {"union_with": "surgeon"}, {"scorer": ["effect", "surgeon"]},
    ),
    "union_with, of itself": (WIDTH, {"union_with": "effect"}, {"scorer": "effect"}),
    "scorer": (NETWORKS, {"scorer": "functional_networks"}, {"scorer": "networks"}),
    "score": (NETWORKS, {"score": "networks"}, {"scorer": "networks"}),
    "score, a union": (NETWORKS, {"score": "union"}, {"scorer": ["networks", "effect"]}),
    "score, a union of three": (
        NETWORKS,
        {"score": "union", "union_with": "loss_effect", "n_components": 6},
        {"scorer": [{"name": "networks", "n_components": 6}, "effect", "loss_effect"]},
    ),
    "decomposer": (NETWORKS, {"decomposer": "canica"}, {"scorer": "networks"}),
    "decomposer, with its starts": (
        NETWORKS,
        {"decomposer": "nilearn", "n_init": 2},
        {"scorer": {"name": "networks", "decomposer": {"name": "nilearn", "n_init": 2}}},
    ),
    "decomposer, with the starts it had": (
        NETWORKS,
        {"decomposer": "nilearn"},
        {"scorer": {"name": "networks", "decomposer": {"name": "nilearn", "n_init": 16}}},
    ),
    "networks beside a new scorer": (
        NETWORKS,
        {"scorer": [{"name": "networks", "signals": ["act"]}, "flap"], "n_components": 6},
        {"scorer": [{"name": "networks", "signals": ["act"], "n_components": 6}, "flap"]},
    ),
    "scorer and repair": (
        NETWORKS,
        {"tol": 1e-3, "compensation": "none"},
        {"scorer": canica(tol=1e-3), "repair": "none"},
    ),
} | {
    name: (NETWORKS, {name: value}, {"scorer": {"name": "networks", name: value}})
    for name, value in {
        "n_components": 6, "samples_per_group": 8, "signals": ["up"], "strategy": "global",
        "aggregate": "max",
    }.items()
} | {
    name: (NETWORKS, {name: value}, {"scorer": canica(**{name: value})})
    for name, value in {
        "solver": "fastica", "contrast": "exp", "max_iter": 5, "tol": 1e-3, "n_init": 2,
    }.items()
}  # fmt: skip
GONE = {
    "token_share": (WIDTH, 0.003),
    "fisher_labels": (WIDTH, "model"),
    "networks_share": (NETWORKS, 0.5),
    "min_stability": (NETWORKS, 0.2),
}


def constructed(modifier, fields, tmp_path):
    MODIFIERS[modifier](pruning_ratio=0.2, **fields)


def pruned(modifier, fields, tmp_path):
    stage = {"p_modifiers": {modifier: {"pruning_ratio": 0.2} | fields}}
    text = yaml.safe_dump({"s_stage": stage}, sort_keys=False)
    prune(tmp_path / "no model", ["text"], tmp_path / "out", recipe=text)


@pytest.mark.parametrize("door", [constructed, pruned])
@pytest.mark.parametrize("case", MOVED)
def test_what_is_said_is_a_recipe_that_works(tmp_path, case, door):
    modifier, fields, now = MOVED[case]
    with pytest.raises(RecipeError, match=" of an earlier version;") as error:
        door(modifier, fields, tmp_path)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    assert sentence.startswith(f"{modifier}: ") and all(
        name in sentence.partition(" of an earlier")[0]
        for name in set(fields) - {"scorer"} - {*now}
    )
    found = yaml.safe_load(re.search(r"it is written now: (.*)\.$", sentence)[1])
    assert found == now
    made, expected = (MODIFIERS[modifier](pruning_ratio=0.2, **f) for f in (found, now))
    assert made.scorer == expected.scorer and made.repair == expected.repair
    MODIFIERS[modifier](**made.model_dump())


@pytest.mark.parametrize("door", [constructed, pruned])
@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_is_said_to_be(tmp_path, name, door):
    modifier, value = GONE[name]
    with pytest.raises(RecipeError, match=rf"{name} is gone: it .*; leave it out\.$"):
        door(modifier, {name: value}, tmp_path)
    now = rf"{name} is gone: .*; it is written now: repair: bias\.$"
    with pytest.raises(RecipeError, match=now):
        door(modifier, {name: value, "compensation": "bias"}, tmp_path)
    with pytest.raises(
        RecipeError, match=r"token_share is gone: .* is gone: .*; leave them out\.$"
    ):
        door(NETWORKS, {"token_share": 0.1, "min_stability": 0.1}, tmp_path)


@pytest.mark.parametrize("door", [constructed, pruned])
@pytest.mark.parametrize("given", ["reconstruction", {"name": "reconstruction", "epochs": 5}])
def test_the_repair_that_is_gone_is_said_to_be(tmp_path, given, door):
    with pytest.raises(RecipeError, match=r"repair reconstruction is gone: .*; take distillation"):
        door(WIDTH, {"repair": given}, tmp_path)
    now = r"reconstruction is gone: .*; it is written now: repair: distillation\.$"
    with pytest.raises(RecipeError, match=now):
        door(WIDTH, {"repair": given, "reconstruction_epochs": 5}, tmp_path)


def test_every_parameter_that_a_part_has_now_was_looked_at():
    """A field of the old modifiers leads to the part that has it now."""
    old = {name for _, fields, _ in MOVED.values() for name in fields}
    came_later = {"decomposer", "layers_per_window"}
    networks = set(SCORERS.all()["networks"].parameters()) - came_later
    assert networks | set(DECOMPOSERS.all()["canica"].parameters()) <= old
    assert {"ridge", "continuations"} <= old & set(REPAIRS.all()["distillation"].parameters())


@pytest.mark.parametrize("name", ["score", "n_components", "n_init", "min_stability"])
def test_what_width_pruning_never_had_is_an_unknown_field(name):
    with pytest.raises(RecipeError, match=f"unknown field '{name}'"):
        MODIFIERS[WIDTH](pruning_ratio=0.2, **{name: 1})


@pytest.mark.parametrize("scorer", ["effect", {"name": "flap"}, ["effect", "taylor"], []])
def test_networks_without_networks_are_refused(scorer):
    with pytest.raises(RecipeError, match="no networks in it; take WidthPruningModifier") as error:
        MODIFIERS[NETWORKS](pruning_ratio=0.2, scorer=scorer)
    assert "\n" not in str(error.value)
    beside = [*(scorer if isinstance(scorer, list) else [scorer]), "networks"]
    assert len(MODIFIERS[NETWORKS](pruning_ratio=0.2, scorer=beside).scorer) == len(beside)
