"""Says what a comparison is made of, and plans its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from funcnet_plugin.compare.digest import digest
from funcnet_plugin.compare.methods import method
from funcnet_plugin.errors import BudgetError, RecipeError
from funcnet_plugin.recipe import Recipe, dump_recipe, override, pruning_modifier

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier


@dataclass
class Comparison:
    """Says what is compared; `compare` runs it.

    Attributes:
        model: checkpoint directory or hub name.
        data: calibration source -> share of the samples.
        texts: name -> test file or dataset.
        methods: see `methods.method`.
        ratios, seeds: of every method.
        repairs: names, instead of the recipe's own; "" leaves it.
        overrides: recipe fields, or parameters of parts, as in `recipe.override`: for all methods
            that know them. A method knows a name if its recipe can be built with it.
        sweeps: the same name -> values, every one of them, for methods that know it.
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
    repairs: Sequence[str] = ("",)
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
    """Describes one pruning of a comparison.

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
    """List all prunings of a plan, the seed changing fastest.

    Raises:
        FuncnetError: an unknown method, two of one name, a field or parameter that no method knows,
            a value that one does not take, or a ratio that is none.
    """
    for ratio in plan.ratios:
        if not 0.0 < ratio < 1.0:
            raise BudgetError(f"pruning_ratio must lie between 0 and 1, got {ratio}.")
    found: dict[str, Run] = {}
    asked = _Asked(plan)
    methods = [method(name) for name in plan.methods]
    for name, recipe in methods:
        if any(other == name and different != recipe for other, different in methods):
            raise RecipeError(
                f"two methods with other recipes are called {name}, and would be one line of the "
                "table; call one of them something else."
            )
    for name, recipe in methods:
        for run in _runs_of(plan, asked, name, recipe):
            found.setdefault(json.dumps(run.key, sort_keys=True), run)
    asked.check_known()
    return list(found.values())


class _Asked:
    """Finds out what each recipe knows of the names that a plan sets and sweeps."""

    def __init__(self, plan: Comparison) -> None:
        self._plan = plan
        self._known: set[str] = set()
        self._reasons: dict[str, RecipeError] = {}

    def of(self, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Sequence[Any]]]:
        """Select the overrides and the sweeps that a recipe knows.

        Names are tried in order, each on top of those before: `repair.epochs` may need `repair`.
        """
        plan, overrides, sweeps = self._plan, {}, {}
        for name, value in plan.overrides.items():
            changed = self._with(recipe, name, [value])
            if changed is not None:
                recipe, overrides[name] = changed, value
        for name, values in plan.sweeps.items():
            changed = self._with(recipe, name, values)
            if changed is not None:
                recipe, sweeps[name] = changed, values
        return overrides, sweeps

    def _with(self, recipe: Recipe, name: str, values: Sequence[Any]) -> Recipe | None:
        """Set a name to the first of these values that the recipe takes; None if it takes none."""
        for value in values:
            try:
                changed = override(recipe, {name: value})
                _modifier(changed)
            except RecipeError as error:
                self._reasons.setdefault(name, error)
            else:
                self._known.add(name)
                return changed
        return None

    def check_known(self) -> None:
        """Refuse a name that no method knows.

        Raises:
            RecipeError: what the first of them said to it.
        """
        for name, reason in self._reasons.items():
            if name not in self._known:
                raise reason


def _runs_of(plan: Comparison, asked: _Asked, name: str, recipe: Recipe) -> Iterator[Run]:
    takes_repair = "repair" in _fields_of(recipe)
    for ratio, samples, repair in product(plan.ratios, plan.samples, plan.repairs):
        # before the other fields, which may be parameters of it, and whatever these say
        chosen = {"repair": repair} if repair and takes_repair else {}
        base, swept = asked.of(override(recipe, chosen | {"pruning_ratio": ratio}))
        for *values, seed in product(*swept.values(), plan.seeds):
            setting = dict(zip(swept, values, strict=True))
            fields = chosen | base | setting | chosen | {"pruning_ratio": ratio, "seed": seed}
            complete = override(recipe, fields)
            modifier = _modifier(complete)
            key = {
                "method": name,
                "ratio": ratio,
                "seed": seed,
                "samples": samples,
                "repair": modifier.repair["name"] if takes_repair else "none",
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

    return isinstance(modifier, WidthPruningModifier) and modifier.request.waits_for_all_layers


def _fields_of(recipe: Recipe) -> set[str]:
    """Name the fields of a recipe's pruning modifier."""
    from funcnet_plugin.hosts.llmcompressor.modifiers import MODIFIERS

    return set(MODIFIERS[pruning_modifier(recipe)[0]].model_fields)
