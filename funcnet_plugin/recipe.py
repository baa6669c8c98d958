"""Reads a recipe before llm-compressor does.

llm-compressor reads several mistakes as an *empty* recipe: the run ends without an error and
nothing is pruned. Others end in an AttributeError. Here each is one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from funcnet_plugin.errors import RecipeError

Recipe = dict[str, Any]
# What our modifiers are called in recipes; the classes themselves need llm-compressor to load.
MODIFIER_NAMES = frozenset(
    {
        "FunctionalNetworkModifier",
        "WidthPruningModifier",
        "DepthPruningModifier",
        "HiddenSlicingModifier",
    }
)
PART_FIELDS = ("scorer", "repair")  # whose values are parts with parameters
_FOLDER = Path(__file__).parent / "recipes"
_SHAPE = "<name>_stage: -> <name>_modifiers: -> ModifierName: {fields}"


def recipe_path(name: str) -> Path:
    """Give the file of a recipe that comes with the package, "ica_prune" for instance."""
    return _FOLDER / f"{name}.yaml"


def packaged_recipes() -> list[str]:
    """List the names that `recipe_path` takes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe and check its shape.

    Args:
        source: a file, the name of a packaged recipe ("prune_best"), or the YAML text itself.

    Raises:
        RecipeError: no such file, not YAML, or of a shape that llm-compressor would read as empty
            or stumble over.
    """
    text = str(source)
    if text in packaged_recipes() and not Path(text).exists():
        source = recipe_path(text)
    one_line = "\n" not in text
    if isinstance(source, Path) or (one_line and text.endswith((".yaml", ".yml", ".json"))):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"the recipe {source} cannot be read: {error.strerror}; give a file, or one of "
                f"{', '.join(packaged_recipes())}."
            ) from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"the recipe {source} is not UTF-8 text.") from error
    try:
        recipe = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise RecipeError(f"the recipe is not valid YAML{line}.") from error
    if isinstance(recipe, str) and one_line:
        raise RecipeError(
            f"there is no recipe {text}; give a .yaml file, or one of "
            f"{', '.join(packaged_recipes())}."
        )
    _check_shape(recipe)
    return recipe


class _Loader(yaml.SafeLoader):
    """Reads YAML as PyYAML does, but for a key that is there twice: it would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if name != "<<" and names.count(name) > 1:
                raise RecipeError(
                    f"the recipe has {name} twice in one place (line {node.start_mark.line + 1}), "
                    "and only the last would be read; put modifiers of one name into stages of "
                    "different names."
                )
        return super().construct_mapping(node, deep)


def _check_shape(recipe: Any) -> None:
    if not isinstance(recipe, dict) or not recipe:
        raise RecipeError(f"the recipe is empty; it needs the shape {_SHAPE}.")
    found = 0
    for stage_key, stage in recipe.items():
        if stage_key == "args":
            continue
        if not str(stage_key).endswith("_stage"):
            raise RecipeError(
                f"llm-compressor ignores the top-level key {stage_key!r}, and with it everything "
                f"below; a recipe has the shape {_SHAPE}."
            )
        for group_key, group in _mapping(stage, stage_key).items():
            if not str(group_key).endswith("_modifiers"):
                raise RecipeError(
                    f"llm-compressor ignores the key {stage_key}.{group_key}; modifiers stand "
                    f"below a key that ends in _modifiers: {_SHAPE}."
                )
            for name, fields in _mapping(group, f"{stage_key}.{group_key}").items():
                fields = _mapping(fields, f"{stage_key}.{group_key}.{name}")
                if "group" in fields:
                    raise RecipeError(
                        f"{name}: the field 'group' is llm-compressor's own; remove it."
                    )
                found += 1
    if not found:
        raise RecipeError(f"the recipe names no modifier; it needs the shape {_SHAPE}.")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{where} holds {'nothing' if value is None else repr(value)}; it must hold a mapping "
            "(write {} for no fields)."
        )
    return value


def override(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """Set fields of the pruning modifier of a recipe.

    Args:
        fields: a name is a field, or leads to a parameter of a part: `repair.epochs`, and where
            there are several parts `scorer.networks.n_components`.

    Raises:
        RecipeError: the recipe has no pruning modifier, or more than one; or a name leads nowhere.
    """
    recipe = deepcopy(recipe)
    given = pruning_modifier(recipe)[1]
    for name, value in fields.items():
        field, *path = name.split(".")
        if path and field not in PART_FIELDS:
            raise RecipeError(
                f"{name} cannot be set: of the fields only {' and '.join(PART_FIELDS)} have "
                "parameters."
            )
        if len(path) == 1 and field not in given:
            raise RecipeError(
                f"{name} cannot be set: the recipe leaves {field!r} to its default; say of which "
                f"part, as in {field}.NAME.{path[0]}."
            )
        # a field that the recipe leaves to its default holds the part that is named here
        part = given.get(field, path[0] if path else None)
        given[field] = _with(part, path, value, name)
    return recipe


def scored_by_atlas(recipe: Recipe, directory: str | Path) -> Recipe:
    """Take the scores of networks from an atlas, instead of finding them.

    Args:
        recipe: whose pruning modifier has the scorer `networks`, alone or among others.
        directory: of the atlas.

    Raises:
        RecipeError: there are no networks in it.
    """
    recipe = deepcopy(recipe)
    name, given = pruning_modifier(recipe)
    whole = {"name": "atlas", "path": str(directory)}
    by_default = "networks" if name == "FunctionalNetworkModifier" else None
    before = given.get("scorer", by_default)
    scorers = before if isinstance(before, list) else [before]
    after = [whole if _name_of(one) == "networks" else one for one in scorers]
    if after == scorers:
        raise RecipeError(
            "an atlas takes the place of the scorer networks, and the recipe has none; take a "
            "recipe with networks, such as ica_prune."
        )
    given["scorer"] = after if isinstance(before, list) else after[0]
    return recipe


def _with(part: Any, path: list[str], value: Any, name: str) -> Any:
    """Put a value into a part, or a list of parts, at the end of a path."""
    if not path:
        return value
    if isinstance(part, list):
        named = [_name_of(one) for one in part]
        if path[0] not in named or len(path) == 1:
            raise RecipeError(
                f"{name} cannot be set: the recipe has several there; say of which, as in "
                f"{name.split('.')[0]}.{next(iter(named), 'NAME')}.{path[-1]}."
            )
        return [
            _with(one, path[1:], value, name) if _name_of(one) == path[0] else one for one in part
        ]
    if isinstance(part, str):
        part = {"name": part}
    if not isinstance(part, dict | None):
        raise RecipeError(f"{name} cannot be set: {part!r} has no parameters.")
    part = part or {}
    head, *rest = path
    if rest and head == part.get("name"):
        return _with(part, rest, value, name)
    return part | {head: _with(part.get(head), rest, value, name)}


def _name_of(part: Any) -> Any:
    return part.get("name") if isinstance(part, dict) else part


def pruning_modifier(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Find name and fields of the one pruning modifier of a recipe.

    Raises:
        RecipeError: the recipe has no pruning modifier, or more than one.
    """
    every = [
        (name, modifiers[name])
        for stage in recipe.values()
        if isinstance(stage, dict)
        for modifiers in stage.values()
        if isinstance(modifiers, dict)
        for name in modifiers
    ]
    ours = [(name, fields) for name, fields in every if name in MODIFIER_NAMES]
    if len(ours) != 1:
        raise RecipeError(
            f"the recipe has {len(ours)} pruning modifiers and needs exactly one of "
            f"{', '.join(sorted(MODIFIER_NAMES))}; it names {', '.join(name for name, _ in every)}."
        )
    return ours[0]


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML text, which oneshot takes like a file."""
    return yaml.safe_dump(recipe, sort_keys=False)
