"""The methods that `funcnet compare` knows by name: recipes, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funcnet_plugin.errors import RecipeError
from funcnet_plugin.recipe import Recipe, load_recipe, override, pruning_modifier, recipe_path


def _recipe(modifier: str, **fields: Any) -> Recipe:
    return {"prune_stage": {"pruning_modifiers": {modifier: fields}}}


def _like(recipe: str, **fields: Any) -> Recipe:
    """A packaged recipe with some fields changed."""
    return override(load_recipe(recipe_path(recipe)), fields)


_, _best = pruning_modifier(load_recipe(recipe_path("prune_best")))


def _width(**fields: Any) -> Recipe:
    return _recipe("WidthPruningModifier", **{"align": _best["align"]} | fields)


def _peer(scorer: str, **fields: Any) -> Recipe:
    return _width(scorer=scorer, allocation="threshold", **fields)


# The peers with one cut over all layers, as the best of ours; `-uniform`: one width for all layers.
# A control has the `align` of what it controls, or it would not remove as much.
METHODS: dict[str, Recipe] = {
    "deployable": load_recipe(recipe_path("ica_prune")),
    "best": load_recipe(recipe_path("prune_best")),
    "networks": load_recipe(recipe_path("ica_prune_best")),
    "paper": load_recipe(recipe_path("ica_prune_paper")),
    "best-uniform": _like("prune_best", allocation="uniform"),  # what equal widths cost
    "best-without-own-text": _like("prune_best", own_text=0.0),  # with nothing but the data
    # with the vocabulary in place of own text, and labels from the data
    "surgeon-vocabulary": _like(
        "prune_best", own_text=0.0, token_share=0.003, fisher_labels="text"
    ),
    "networks-vocabulary": _like(
        "ica_prune_best", own_text=0.0, token_share=0.003, fisher_labels="text"
    ),
    # FLAP as published: WIFV standardised per layer, one cut, the bias
    "flap": _peer("flap", compensation="bias"),
    "effect": _peer("effect"),
    "loss_effect": _peer("loss_effect"),
    "surgeon": _peer("surgeon"),
    "wanda_sp": _width(scorer="wanda_sp"),  # its numbers cannot be compared across layers
    "taylor": _peer("taylor"),
    "obs": _width(scorer="obs"),  # an order within the layer
    "magnitude": _width(scorer="magnitude"),
    # the controls that every claim must beat
    "random": _width(scorer="random"),
    "random-or-best": _like("prune_best", scorer="random", union_with="surgeon"),
    "random-or-effect": _peer("random", union_with="effect"),
    "random-or-loss_effect": _peer("random", union_with="loss_effect"),
    "random-or-surgeon": _peer("random", union_with="surgeon", token_share=0.003),
    "effect-uniform": _width(scorer="effect", align=128),
    # the union of deployable with nothing but the data, each MLP's output repaired; its control
    "networks-or-effect-uniform": _like("ica_prune", own_text=0.0, compensation="least_squares"),
    "random-or-effect-uniform": _width(
        scorer="random", union_with="effect", token_share=0.003, align=128
    ),
    # with own text and reconstruction: the control of deployable
    "random-or-deployable": _like(
        "prune_best",
        scorer="random",
        union_with="effect",
        token_share=0.003,
        fisher_labels="text",
        allocation="uniform",
        align=128,
        continuations=0,
    ),
    # peers that cut something else than neurons, unrepaired as published
    "shortgpt": _recipe("DepthPruningModifier", score="block_influence"),
    "shortened_llama": _recipe("DepthPruningModifier", score="perplexity"),
    "slicegpt": _recipe("HiddenSlicingModifier"),
}
# The peers with all the text that best has the model write, and with its repair.
METHODS |= {
    f"{peer}-own-text": override(
        METHODS[peer],
        {field: _best[field] for field in ("own_text", "continuations", "compensation")},
    )
    for peer in ("flap", "wanda_sp", "taylor", "obs")
}


def method(name: str) -> tuple[str, Recipe]:
    """A known name, or NAME=RECIPE.yaml.

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
