"""What the methods of `funcnet compare` are told against: controls and variants, as recipes.

The other benchmarks pass them on as NAME=RECIPE.yaml. A control has the `align` of what it
controls, or it would not remove as much. `-own-text`: a peer with all the text that `best` has the
model write, and with its repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from funcnet_plugin.compare.methods import METHODS, method
from funcnet_plugin.errors import RecipeError
from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS
from funcnet_plugin.recipe import Recipe, dump_recipe, override, pruning_modifier

_, _best = pruning_modifier(METHODS["best"])


def _like(method: str, **fields: Any) -> Recipe:
    return override(METHODS[method], fields)


def _scored_by(recipe: Recipe, *scorers: str) -> Recipe:
    """Put other scorers into a recipe of networks; all else stays."""
    _, fields = pruning_modifier(recipe)
    modifier = {"WidthPruningModifier": fields | {"scorer": list(scorers)}}
    return {"prune_stage": {"pruning_modifiers": modifier}}


CONTROLS: dict[str, Recipe] = {  # random numbers in place of the networks, or beside the score
    "random-or-default": _scored_by(METHODS["default"], "random", "effect"),
    "random-or-best": _like("best", scorer=["random", "surgeon"]),
    "random-or-surgeon": _like("surgeon", scorer=["random", "surgeon"]),
}
CONTROLS |= {
    f"{peer}-own-text": _like(peer, own_text=_best["own_text"], repair=_best["repair"])
    for peer in ("flap", "wanda_sp", "taylor", "obs")
}


def method_arguments(names: Iterable[str], folder: Path) -> list[str]:
    """Write the recipes of controls into a folder, and name all methods as `--method` takes them.

    Args:
        names: of `CONTROLS`, or anything that `--method` takes by itself.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        if name in CONTROLS:
            path = folder / f"{name}.yaml"
            path.write_text(dump_recipe(CONTROLS[name]))
            name = f"{name}={path}"
        found.append(name)
    return found


def known_fields(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Select the fields that one of these methods knows: `funcnet compare` refuses the others."""
    recipes = [CONTROLS[name] if name in CONTROLS else method(name)[1] for name in names]
    return {
        name: value
        for name, value in fields.items()
        if any(_knows(recipe, name, value) for recipe in recipes)
    }


def _knows(recipe: Recipe, name: str, value: Any) -> bool:
    try:
        modifier, fields = pruning_modifier(override(recipe, {"pruning_ratio": 0.2, name: value}))
        MODIFIERS[modifier](**fields)
    except RecipeError:
        return False
    return True
