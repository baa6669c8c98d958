"""Methods by name, their controls, and which settings each knows."""

import pytest
import yaml

from funcnet_plugin.compare import METHODS
from funcnet_plugin.compare.plan import runs
from funcnet_plugin.errors import (
    RecipeError,
)
from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS, register
from funcnet_plugin.recipe import override, pruning_modifier
from tests.compare.plans import plan

pytestmark = pytest.mark.usefixtures("forget_the_session")


def settings_of(recipe, **fields):
    """What a recipe says in full, but for the scorer."""
    modifier, given = pruning_modifier(override(recipe, {"pruning_ratio": 0.2} | fields))
    return MODIFIERS[modifier](**given).model_dump(exclude={"scorer"})


@pytest.mark.parametrize(
    "method, control",
    [
        ("default", "random-or-default"),
        *((name, f"random-or-{name}") for name in ("best", "surgeon")),
    ],
)
def test_a_control_differs_by_its_scorer_alone(method, control, controls):
    every = METHODS | controls.CONTROLS
    assert settings_of(every[method]) == settings_of(every[control])
    scorers = [pruning_modifier(every[name])[1]["scorer"] for name in (method, control)]
    assert scorers[0] != scorers[1] and scorers[1][0] == "random"


def test_parameters_of_a_repair_are_for_the_runs_that_have_it(checkpoint, files):
    """A name is known where the recipe can be built with it, under the repair of the run."""
    asked = plan(
        checkpoint, files, methods=("flap", "best", "shortgpt"), ratios=(0.2,),
        repairs=("", "none", "distillation"), overrides={"repair.ridge": 0.1},
        sweeps={"repair.epochs": [1, 3]},
    )  # fmt: skip
    found = [(run.key["method"], run.key["repair"], run.key["setting"]) for run in runs(asked)]
    epochs = [{"repair.epochs": 1}, {"repair.epochs": 3}]
    assert found == [
        ("flap", "bias", {}),
        ("flap", "none", {}),
        *(("flap", "distillation", setting) for setting in epochs),
        *(("best", "distillation", setting) for setting in epochs),  # its own
        ("best", "none", {}),
        *(("best", "distillation", setting) for setting in epochs),
        ("shortgpt", "none", {}),
    ]
    with_repair = [run for run in runs(asked) if run.key["repair"] == "distillation"]
    for run in with_repair:
        _, fields = pruning_modifier(override(yaml.safe_load(run.recipe), run.fields))
        assert fields["repair"]["ridge"] == 0.1
        assert fields["repair"]["epochs"] == run.key["setting"]["repair.epochs"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scorer.networks.n_components", 6, "the scorer flap has no parameter 'networks'"),
        ("repair.epochs", 2, "the repair bias has no parameter 'epochs'.*to distillation"),
        ("epochs", 2, "WidthPruningModifier: unknown field 'epochs'"),
        ("align", 0, "align=0"),
        ("seed.x", 1, "only scorer and repair have parameters"),
    ],
)
def test_a_name_that_no_method_knows_is_refused_for_the_first_reason(
    checkpoint, files, name, value, message
):
    plain = {"methods": ("flap", "effect"), "repairs": ("",), "overrides": {}}
    for changes in ({"overrides": {name: value}}, {"sweeps": {name: [value]}}):
        with pytest.raises(RecipeError, match=message):
            runs(plan(checkpoint, files, **plain | changes))


def test_benchmarks_set_what_a_method_knows(controls):
    fields = {"align": 32, "scorer.networks.decomposer.n_init": 4}
    assert controls.known_fields(fields, ["shortgpt"]) == {}
    assert controls.known_fields(fields, ["shortgpt", "random-or-best"]) == {"align": 32}
    assert controls.known_fields(fields, ["random", "default"]) == fields


def test_every_named_method_is_a_valid_recipe(controls):
    from llmcompressor.recipe import Recipe

    register()
    for name, recipe in (METHODS | controls.CONTROLS).items():
        text = yaml.safe_dump(override(recipe, {"pruning_ratio": 0.2}))
        (modifier,) = Recipe.create_instance(text).modifiers
        assert modifier.pruning_ratio == 0.2, name


@pytest.mark.parametrize(
    "method, control",
    [
        ("default", "random-or-default"),
        *(("best", name) for name in ("random-or-best", "flap", "obs", "obs-own-text", "random")),
    ],
)
def test_what_is_compared_removes_as_much(method, control, controls):
    every = METHODS | controls.CONTROLS
    first, second = (pruning_modifier(every[name])[1] for name in (method, control))
    assert first["align"] == second["align"]
