"""Recipes from before parts had parameters of their own: how they are written now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from funcnet_plugin.errors import RecipeError

_OF_NETWORKS = ("n_components", "samples_per_group", "signals", "strategy", "aggregate")
_OF_CANICA = ("solver", "contrast", "max_iter", "tol", "n_init")
_GONE = {
    "min_stability": "gained nothing",
    "networks_share": "gained nothing",
    "token_share": "gained nothing where the model writes own_text",
    "fisher_labels": "is always what `model` was",
}
_COMPENSATION = "compensation"
_OF_REPAIR = ("ridge", "continuations", "reconstruction_epochs")
_OLD = (
    "score", "union_with", "decomposer", _COMPENSATION, *_OF_NETWORKS, *_OF_CANICA, *_OF_REPAIR,
    *_GONE,
)  # fmt: skip


def refuse_old_shape(modifier: str, fields: Mapping[str, Any]) -> None:
    """Say how a recipe of the old shape is written now.

    Args:
        modifier: its name.
        fields: as given.

    Raises:
        RecipeError: a field is one of the old ones.
    """
    old = [name for name in fields if name in _OLD]
    old += ["scorer"] if fields.get("scorer") == "functional_networks" else []
    if not old:
        return
    gone = [f"{name} is gone: it {_GONE[name]}" for name in old if name in _GONE]
    new = {}
    if any(name not in (*_GONE, _COMPENSATION, *_OF_REPAIR) for name in old):
        new["scorer"] = _scorer(modifier, fields)
    if any(name in (_COMPENSATION, *_OF_REPAIR) for name in old):
        new["repair"] = _repair(fields)
    written = yaml.safe_dump(new, default_flow_style=True, sort_keys=False, width=10**6).strip()
    now = f"it is written now: {written[1:-1]}" if new else "leave it out"
    raise RecipeError(
        f"{modifier}: {', '.join(old)} {'is a field' if len(old) == 1 else 'are fields'} of an "
        f"earlier version{''.join(f'; {why}' for why in gone)}; {now}."
    )


def _scorer(modifier: str, fields: Mapping[str, Any]) -> Any:
    found = []
    if modifier == "FunctionalNetworkModifier":
        networks = {name: fields[name] for name in _OF_NETWORKS if name in fields}
        decomposer = {name: fields[name] for name in _OF_CANICA if name in fields}
        if fields.get("decomposer") not in (None, "canica"):
            decomposer = {"name": fields["decomposer"]}
        elif decomposer:
            decomposer = {"name": "canica"} | decomposer
        if decomposer:
            networks["decomposer"] = decomposer
        found.append({"name": "networks"} | networks if networks else "networks")
        if fields.get("score") == "union":
            found.append("effect")
    else:
        found.append(fields.get("scorer", "effect"))
    if fields.get("union_with"):
        found.append(fields["union_with"])
    return found[0] if len(found) == 1 else found


def _repair(fields: Mapping[str, Any]) -> Any:
    name = fields.get(_COMPENSATION, "least_squares")
    parameters: dict[str, Any] = {}
    if name == "residual_least_squares":
        name, parameters = "reconstruction", {"epochs": 0}
    elif name == "reconstruction" and "reconstruction_epochs" in fields:
        parameters["epochs"] = fields["reconstruction_epochs"]
    if name == "reconstruction" and fields.get("continuations"):
        parameters["continuations"] = fields["continuations"]
    if name in ("least_squares", "reconstruction") and fields.get("ridge") not in (None, "auto"):
        parameters["ridge"] = fields["ridge"]
    return {"name": name} | parameters if parameters else name
