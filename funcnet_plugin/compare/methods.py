"""The methods that `funcnet compare` knows by name: recipes, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.recipe import Recipe, load_recipe, pruning_modifier

_, _best = pruning_modifier(load_recipe("prune_best"))


def _recipe(modifier: str, **fields: Any) -> Recipe:
    return {"prune_stage": {"pruning_modifiers": {modifier: fields}}}


def _width(scorer: str, allocation: str = "uniform", repair: str = "least_squares") -> Recipe:
    # `align` is that of the best recipe: with another one a peer would not remove as much
    return _recipe(
        "WidthPruningModifier",
        scorer=scorer,
        repair=repair,
        allocation=allocation,
        align=_best["align"],
    )


# The peers have one cut over all layers, as the best of ours, if their numbers compare across them.
METHODS: dict[str, Recipe] = {
    "default": load_recipe("ica_prune"),
    "best": load_recipe("prune_best"),
    "fast": load_recipe("prune_fast"),
    "paper": load_recipe("ica_prune_paper"),
    # FLAP as published: WIFV standardised per layer, one cut, the bias
    "flap": _width("flap", "threshold", repair="bias"),
    "effect": _width("effect", "threshold"),
    "loss_effect": _width("loss_effect", "threshold"),
    "surgeon": _width("surgeon", "threshold"),
    "wanda_sp": _width("wanda_sp"),
    "taylor": _width("taylor", "threshold"),
    "obs": _width("obs"),  # an order within the layer
    "magnitude": _width("magnitude"),
    "random": _width("random"),  # what every claim must beat
    # peers that cut something else than neurons, unrepaired as published
    "shortgpt": _recipe("DepthPruningModifier", score="block_influence"),
    "shortened_llama": _recipe("DepthPruningModifier", score="perplexity"),
    "slicegpt": _recipe("HiddenSlicingModifier"),
}


def method(name: str) -> tuple[str, Recipe]:
    """Look up a known name, or read NAME=RECIPE.yaml.

    Raises:
        RecipeError: neither.
    """
    if name in METHODS:
        return name, METHODS[name]
    label, equals, path = name.partition("=")
    if not equals or not Path(path).is_file():
        raise RecipeError(
            f"there is no method {name!r}; choose one of {', '.join(METHODS)}, or give "
            "NAME=RECIPE.yaml."
        )
    return label, load_recipe(Path(path))
