"""Says how recipes are written now that were made before parts had parameters of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from funcnet_plugin.errors import RecipeError

_NETWORKS = ("n_components", "samples_per_group", "signals", "strategy", "aggregate")
_CANICA = ("solver", "contrast", "max_iter", "tol", "n_init")
_SCORER = ("union_with",)
_REPAIR = ("compensation", "ridge", "continuations", "reconstruction_epochs")
_RECONSTRUCTIONS = ("reconstruction", "residual_least_squares")  # `distillation` took their place
_GONE = {
    "token_share": "it gained half a percent at most where the model writes own_text",
    "fisher_labels": "it is always what `model` was",
}
# What only FunctionalNetworkModifier had.
_OF_NETWORKS = ("score", "decomposer", *_NETWORKS, *_CANICA)
_GONE_OF_NETWORKS = {
    "networks_share": "it gained nothing",
    "min_stability": "it gained nothing",
}
_OLD_NAME = "functional_networks"
_STARTS = 16  # that nilearn was given; its own default is another


def refuse_old_shape(modifier: str, fields: Mapping[str, Any]) -> None:
    """Say how a recipe of the old shape is written now.

    Args:
        modifier: its name.
        fields: as given.

    Raises:
        RecipeError: a field is one of the old ones.
    """
    of_networks = modifier == "FunctionalNetworkModifier"
    gone = _GONE | (_GONE_OF_NETWORKS if of_networks else {})
    of_scorer = [
        name
        for name in fields
        if name in _SCORER
        or (of_networks and name in _OF_NETWORKS)
        or (name == "scorer" and fields[name] == _OLD_NAME)
    ]
    of_repair = [name for name in fields if name in _REPAIR]
    old = [name for name in fields if name in (*of_scorer, *of_repair, *gone)]
    if not old:
        return
    new = {}
    if of_scorer:
        new["scorer"] = _scorer(of_networks, fields)
    if of_repair:
        new["repair"] = _repair(fields)
    why = [f"{name} is gone: {gone[name]}" for name in old if name in gone]
    if of_repair and _repair_name(fields) in _RECONSTRUCTIONS:
        why.append(f"{_repair_name(fields)} is gone: it lost on a real model")
    if fields.get("ridge") == "auto":
        why.append("ridge: auto is gone: it gained a tenth of a percent")
    said = [f"scorer: {_OLD_NAME}" if name == "scorer" else name for name in old]
    are, them = ("is", "it") if len(old) == 1 else ("are", "them")
    reasons = "".join(f"; {reason}" for reason in why)
    mend = f"it is written now: {_written(new)}" if new else f"leave {them} out"
    raise RecipeError(
        f"{modifier}: {', '.join(said)} {are} of an earlier version{reasons}; {mend}."
    )


def _written(new: Mapping[str, Any]) -> str:
    """Write fields as YAML in one line, of which a recipe takes over what it needs."""
    text = yaml.safe_dump(new, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return text if len(new) > 1 else text[1:-1]


def _scorer(of_networks: bool, fields: Mapping[str, Any]) -> Any:
    given = fields.get("scorer", "networks" if of_networks else "effect")
    found = list(given) if isinstance(given, list | tuple) else [given]
    found = ["networks" if one == _OLD_NAME else one for one in found]
    if of_networks:
        found = [_networks(one, fields) if _name(one) == "networks" else one for one in found]
    found += ["effect"] if fields.get("score") == "union" else []
    found += [fields["union_with"]] if fields.get("union_with") else []
    once = [one for i, one in enumerate(found) if _name(one) not in map(_name, found[:i])]
    return once[0] if len(once) == 1 else once


def _networks(given: str | Mapping[str, Any], fields: Mapping[str, Any]) -> str | dict[str, Any]:
    parameters = {} if isinstance(given, str) else dict(given)
    parameters |= _among(fields, _NETWORKS)
    decomposer = fields.get("decomposer", "canica")
    of_canica = _among(fields, _CANICA)
    if isinstance(decomposer, Mapping):
        parameters["decomposer"] = dict(decomposer) | of_canica
    elif decomposer == "nilearn":
        n_init = fields.get("n_init", _STARTS)
        parameters["decomposer"] = {"name": decomposer, "n_init": n_init}
    elif of_canica:
        parameters["decomposer"] = {"name": decomposer} | of_canica
    return {"name": "networks"} | parameters if parameters else "networks"


def _repair(fields: Mapping[str, Any]) -> str | dict[str, Any]:
    given, name = _given_repair(fields), _repair_name(fields)
    parameters = {} if isinstance(given, str) else {k: v for k, v in given.items() if k != "name"}
    if name in _RECONSTRUCTIONS:
        name = "distillation"
        parameters.pop("epochs", None)  # theirs were of one MLP
    if name == "distillation" and fields.get("continuations"):
        parameters["continuations"] = fields["continuations"]
    if name in ("least_squares", "distillation") and fields.get("ridge", "auto") != "auto":
        parameters["ridge"] = fields["ridge"]
    return {"name": name} | parameters if parameters else name


def _given_repair(fields: Mapping[str, Any]) -> Any:
    return fields.get("compensation", fields.get("repair", "least_squares"))


def _repair_name(fields: Mapping[str, Any]) -> Any:
    return _name(_given_repair(fields))


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part


def _among(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}
