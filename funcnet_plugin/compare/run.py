"""Prunes with every method and setting, measures each result, and keeps what is done."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from funcnet_plugin.calibration import load_texts
from funcnet_plugin.compare.methods import method
from funcnet_plugin.errors import FuncnetError, RecipeError
from funcnet_plugin.inspect import inspect_model, load_tokenizer
from funcnet_plugin.perplexity import perplexities, text_windows
from funcnet_plugin.prune import prune
from funcnet_plugin.recipe import dump_recipe, override

Row = dict[str, Any]


@dataclass
class Comparison:
    """What is compared; `compare` runs it.

    Attributes:
        model: checkpoint directory or hub name.
        data: calibration source -> share of the samples.
        texts: name -> test file or dataset.
        methods: see `methods.method`.
        ratios, seeds: of every method.
        compensations: instead of the recipe's own; "" leaves it.
        overrides: recipe fields for all methods that know them.
        samples, window, text_column: see `prune`.
        windows: test windows per text, of `window` tokens.
    """

    model: str
    data: Mapping[str, float]
    texts: Mapping[str, str]
    methods: Sequence[str]
    ratios: Sequence[float] = (0.1, 0.2, 0.3)
    compensations: Sequence[str] = ("",)
    seeds: Sequence[int] = (0,)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 160
    window: int = 512
    windows: int = 64
    text_column: str = "text"


def compare(
    plan: Comparison, out: Path, progress: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Measure everything that `out` does not hold yet.

    Args:
        plan: what to compare.
        out: rows.jsonl is written there, one row after another; a row that is there is not measured
            again, if model, data, texts and settings were the same.
        progress: called with every row, found or measured.

    Returns:
        the rows of this plan, the dense model first. Ratios of perplexity are to the dense model;
        `gm` is their geometric mean over all texts, `worst` the largest.

    Raises:
        FuncnetError: one sentence on what cannot be compared, before anything is pruned.
    """
    chosen = [method(name) for name in plan.methods]
    shape = inspect_model(plan.model)
    window = min(plan.window, shape.max_length or plan.window)
    tokenizer = load_tokenizer(plan.model)
    texts = {
        name: text_windows(source, plan.text_column, tokenizer, window, plan.windows)
        for name, source in plan.texts.items()
    }
    _warn_of_overlap(plan)
    common = _fingerprint(plan, window)
    out.mkdir(parents=True, exist_ok=True)
    done = _read(out / "rows.jsonl")
    rows: list[Row] = []

    def once(key: Row, measure: Callable[[], Row]) -> Row:
        mark = json.dumps(key | {"common": common}, sort_keys=True)
        if mark not in done:
            done[mark] = key | measure()
            with (out / "rows.jsonl").open("a") as file:
                file.write(json.dumps({"mark": mark, "row": done[mark]}) + "\n")
        rows.append(done[mark])
        progress(done[mark])
        return done[mark]

    def dense_row() -> Row:
        found = perplexities(plan.model, texts)
        return {"parameters": shape.parameters, "perplexity": found.by_text, "gm": 1.0,
                "worst": 1.0, "tokens_per_second": found.tokens_per_second}  # fmt: skip

    dense = once({"method": "dense"}, dense_row)

    def pruned_row(recipe: dict[str, Any], fields: dict[str, Any]) -> Row:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "pruned"
            block = prune(
                plan.model, plan.data, checkpoint, recipe=dump_recipe(recipe), overrides=fields,
                samples=plan.samples, window=window, text_column=plan.text_column,
            )  # fmt: skip
            took = time.perf_counter() - start
            found = perplexities(checkpoint, texts)
        relative = [found.by_text[name] / dense["perplexity"][name] for name in texts]
        return {
            "parameters": block["parameters_after"],
            "ratio_reached": block["pruning_ratio_reached"],
            "perplexity": found.by_text,
            "gm": math.exp(sum(map(math.log, relative)) / len(relative)),
            "worst": max(relative),
            "seconds": took,
            "tokens_per_second": found.tokens_per_second,
        }

    for (name, recipe), ratio, compensation, seed in product(
        chosen, plan.ratios, plan.compensations, plan.seeds
    ):
        fields = _fields(recipe, plan.overrides) | {"pruning_ratio": ratio, "seed": seed}
        if compensation:
            fields["compensation"] = compensation
        key = {"method": name, "ratio": ratio, "seed": seed,
               "compensation": _modifier(override(recipe, fields))[1].get(
                   "compensation", "least_squares"),
               "recipe": _hash(dump_recipe(override(recipe, fields)))}  # fmt: skip
        try:
            once(key, lambda recipe=recipe, fields=fields: pruned_row(recipe, fields))
        except FuncnetError as error:
            # One method may not fit this model; the others are still worth having.
            once(key, lambda error=error: {"refused": str(error)})
    return rows


def _fields(recipe: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the recipe's modifier has."""
    from funcnet_plugin.hosts.functional_network import FunctionalNetworkModifier
    from funcnet_plugin.hosts.width_pruning import WidthPruningModifier

    classes = {c.__name__: c for c in (FunctionalNetworkModifier, WidthPruningModifier)}
    unknown = set(overrides) - set(FunctionalNetworkModifier.model_fields)
    if unknown:
        raise RecipeError(f"no pruning modifier has the field {sorted(unknown)[0]!r}.")
    known = classes[_modifier(recipe)[0]].model_fields
    return {key: value for key, value in overrides.items() if key in known}


def _modifier(recipe: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and fields of the one pruning modifier."""
    for stage in recipe.values():
        for group in stage.values():
            for name, fields in group.items():
                if name.endswith(("NetworkModifier", "WidthPruningModifier")):
                    return name, fields
    raise RecipeError("a method's recipe needs a pruning modifier.")


def _warn_of_overlap(plan: Comparison) -> None:
    calibration = {_digest(source, plan.text_column): source for source in plan.data}
    for name, source in plan.texts.items():
        if _digest(source, plan.text_column) in calibration:
            warnings.warn(
                f"{name} is measured on the text that calibrates ({source}); its perplexity says "
                "nothing about text that was not seen.",
                stacklevel=3,
            )


def _digest(source: str, column: str) -> str:
    return _hash(json.dumps(load_texts(source, column)))


def _fingerprint(plan: Comparison, window: int) -> str:
    config = Path(plan.model) / "config.json"
    model = config.read_text() if config.exists() else plan.model
    facts = [
        model, str(plan.model), window, plan.samples, plan.windows,
        {_digest(s, plan.text_column): share for s, share in plan.data.items()},
        {name: _digest(s, plan.text_column) for name, s in plan.texts.items()},
    ]  # fmt: skip
    return _hash(json.dumps(facts, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Row]:
    """Rows by their mark; a line that an interruption cut short is measured again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["mark"]] = entry["row"]
    return found
