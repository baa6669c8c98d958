"""What a comparison is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from funcnet_plugin.compare.fingerprint import digest
from funcnet_plugin.compare.methods import method
from funcnet_plugin.errors import BudgetError, RecipeError
from funcnet_plugin.recipe import Recipe, dump_recipe, override, pruning_modifier

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


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
        sweeps: recipe field -> values, every one of them, for methods that know the field.
        samples: numbers of calibration windows.
        window: tokens per window, of calibration and test.
        text_column: see `prune`.
        windows: test windows per text.
        tasks: lm-eval tasks.
        include_path: where lm-eval looks for tasks besides its own.
        limit: documents per task; None for all.
        measure_once: ratios of one method share what was measured, where the method measures before
            it cuts. The results are the same; on disk it takes `width ** 2 * 8` bytes per layer.
    """

    model: str
    data: Mapping[str, float]
    texts: Mapping[str, str]
    methods: Sequence[str]
    ratios: Sequence[float] = (0.1, 0.2, 0.3)
    compensations: Sequence[str] = ("",)
    seeds: Sequence[int] = (0,)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    sweeps: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    samples: Sequence[int] = (160,)
    window: int = 512
    windows: int = 64
    text_column: str = "text"
    tasks: Sequence[str] = ()
    include_path: str | None = None
    limit: int | None = None
    measure_once: bool = True


@dataclass(frozen=True)
class Run:
    """One pruning of a comparison.

    Attributes:
        key: what its row says about it; two runs with one key give one row.
        recipe: YAML text.
        fields: of its pruning modifier, instead of the recipe's.
        samples: calibration windows.
        measures: equal for runs that measure the same and cut at another ratio; None for a run that
            measures for itself.
    """

    key: dict[str, Any]
    recipe: str
    fields: dict[str, Any]
    samples: int
    measures: str | None


def runs(plan: Comparison) -> list[Run]:
    """All prunings of a plan, the seed changing fastest.

    Raises:
        FuncnetError: an unknown method or field, a value that a field does not take, or a ratio
            that is none.
    """
    found: dict[str, Run] = {}
    for name, recipe in [method(name) for name in plan.methods]:
        for run in _runs_of(plan, name, recipe):
            found.setdefault(json.dumps(run.key, sort_keys=True), run)
    return list(found.values())


def _runs_of(plan: Comparison, name: str, recipe: Recipe) -> Iterator[Run]:
    known = _fields_of(recipe, [*plan.overrides, *plan.sweeps])
    base = {key: value for key, value in plan.overrides.items() if key in known}
    swept = {key: values for key, values in plan.sweeps.items() if key in known}
    for ratio, samples, compensation, *values, seed in product(
        plan.ratios, plan.samples, plan.compensations, *swept.values(), plan.seeds
    ):
        setting = dict(zip(swept, values, strict=True))
        fields = base | setting | {"pruning_ratio": ratio, "seed": seed}
        if compensation and "compensation" in known:
            fields["compensation"] = compensation
        complete = override(recipe, fields)
        if not 0.0 < ratio < 1.0:
            raise BudgetError(f"pruning_ratio must lie between 0 and 1, got {ratio}.")
        modifier = _modifier(complete)
        key = {
            "method": name,
            "ratio": ratio,
            "seed": seed,
            "samples": samples,
            "compensation": pruning_modifier(complete)[1].get(
                "compensation", "least_squares" if "compensation" in known else "none"
            ),
            "setting": setting,
            "recipe": digest(dump_recipe(complete)),
        }
        measures = None
        if plan.measure_once and len(plan.ratios) > 1 and _waits_for_all_layers(modifier):
            # in the words of a recipe: that of the first ratio
            first = override(complete, {"pruning_ratio": plan.ratios[0]})
            measures = f"{samples} samples\n{dump_recipe(first)}"
        yield Run(key, dump_recipe(recipe), fields, samples, measures)


def _modifier(recipe: Recipe) -> Modifier:
    from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS

    name, fields = pruning_modifier(recipe)
    return MODIFIERS[name](**fields)


def _waits_for_all_layers(modifier: Modifier) -> bool:
    from funcnet_plugin.hosts.llmcompressor.modifiers import WidthPruningModifier

    return isinstance(modifier, WidthPruningModifier) and modifier.waits_for_all_layers()


def _fields_of(recipe: Recipe, asked: Sequence[str]) -> set[str]:
    """The fields of a recipe's pruning modifier.

    Raises:
        RecipeError: a field that is asked for belongs to no pruning modifier at all.
    """
    from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS

    everywhere = {name for modifier in MODIFIERS.values() for name in modifier.model_fields}
    for name in asked:
        if name not in everywhere:
            raise RecipeError(f"no pruning modifier has the field {name!r}.")
    return set(MODIFIERS[pruning_modifier(recipe)[0]].model_fields)
