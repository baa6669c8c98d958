"""Decides which layers a run cuts, and to which widths: known or not yet, never out of reach.

Heads and neurons share one ratio: what heads do not give, neurons do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from compressed_tensors.utils import match_name
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit, bind, count_parameters
from funcnet_plugin.cut.budget import Budget, LayerSize, plan_budget
from funcnet_plugin.cut.heads import HeadPlan
from funcnet_plugin.errors import BudgetError, RecipeError

AUTO = "auto"  # heads_ratio: as many as cost the layers less than neurons would


class WidthPlan:
    """Holds the widths of a model's units before and after.

    Args:
        model: before pruning.
        ratio, scope, align, one_width: see `plan_budget`.
        skip_first, skip_last: how many layers are left whole at the ends.
        ignore: MLPs left whole: module paths or ``re:`` patterns.
        heads_ratio: share of all heads that go, in every layer; 0: none; "auto": open yet.

    Attributes:
        layout: the model's units, which follow when they are cut.
        heads: of all layers; None where none may go.
        choices: key-value heads that every layer may keep -> what the ratio asks of neurons then.
        original: widths before pruning.
        parameters: of the model before pruning.
        budget: what the ratio asks for; one of several possible where heads are open.
        kept: widths after pruning; None until they are decided.
        prunable: the units that may be cut.

    Raises:
        AdapterError, BudgetError, RecipeError: the model is not known, the ratio cannot be reached,
            or a pattern names nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ratio: float,
        scope: str,
        align: int,
        skip_first: int,
        skip_last: int,
        ignore: Sequence[str],
        one_width: bool = True,
        heads_ratio: float | str = 0.0,
    ) -> None:
        self.layout = bind(model)
        blocks = self.layout.blocks
        check_ignore(ignore, blocks)
        self.original = self.layout.widths
        self.parameters = count_parameters(model)
        self.heads = HeadPlan(model, self.layout.adapter.layers) if heads_ratio else None
        self._one_width = one_width
        self._other_parameters = self.parameters - self._parameters_of_units()
        last = len(blocks) - skip_last
        self.prunable = [
            block
            for block in blocks
            if skip_first <= block.index < last
            and not any(match_name(block.name, pattern) for pattern in ignore)
        ]
        if ignore and not self.prunable and skip_first < last:
            raise RecipeError(
                f"ignore names every one of the {len(blocks)} MLPs that may be cut, so nothing is "
                "left to prune; name fewer."
            )
        budget = partial(
            plan_budget,
            [LayerSize(b.width, b.parameters_per_piece, b in self.prunable) for b in blocks],
            ratio=ratio,
            align=align,
            total_parameters=self.parameters,
            scope=scope,
            one_width=one_width,
        )
        self.kept: list[int] | None = None
        self.choices: dict[int, Budget] = {}
        if self.heads is None:
            self.budget = budget()
            return
        if heads_ratio != AUTO:
            self.heads.decide_by_share(heads_ratio)
        self.choices = self._choices(budget)
        self.budget = next(iter(self.choices.values()))

    def _choices(self, budget: Callable[..., Budget]) -> dict[int, Budget]:
        """Find with which numbers of heads the ratio can be reached, the largest first.

        Raises:
            BudgetError: with none.
        """
        heads, found, first = self.heads, {}, None
        every = (heads.original, *reversed(heads.possible)) if heads.kept is None else (heads.kept,)
        for kept in every:
            try:
                found[kept] = budget(of_heads=heads.removed(kept))
            except BudgetError as error:
                first = first or error
        if not found:
            raise first
        return found

    @property
    def heads_are_open(self) -> bool:
        """Tell whether it is yet to be decided how many heads go."""
        return self.heads is not None and self.heads.kept is None

    def decide_heads(self, kept: int) -> None:
        """Decide how many key-value heads every layer keeps, one of `choices`."""
        self.heads.kept, self.budget = kept, self.choices[kept]

    def decide_uniform(self) -> float:
        """Decide on one width for all layers. Returns the ratio that this reaches."""
        self._decide(self.budget.uniform())
        return self.budget.removed(self.kept) / self.budget.scope_parameters

    def decide_by_threshold(self, scores: Sequence[Tensor]) -> None:
        """Decide on one cut over all layers, by scores of each prunable one that compare."""
        by_layer: list[Tensor | None] = [None] * len(self.original)
        for block, score in zip(self.prunable, scores, strict=True):
            by_layer[block.index] = score
        self._decide(self.budget.threshold(by_layer))

    def _decide(self, kept: list[int]) -> None:
        far = self.budget.far_from_asked(kept)
        if far is not None:
            logger.warning(f"{far}; a smaller align comes nearer")
        self.kept = kept

    def possible_widths(self, unit: Unit) -> list[int]:
        """List what may be left of a unit, as far as it is decided."""
        if self.kept is not None:
            return [self.kept[unit.index]]
        if self.heads_are_open and self._one_width:
            return sorted({budget.uniform()[unit.index] for budget in self.choices.values()})
        return [*range(self.budget.align, unit.width, self.budget.align), unit.width]

    def expected_columns(self, unit: Unit) -> int:
        """Count the columns of a unit's output projection that are left, on average if open."""
        if self.kept is not None:
            return unit.n_columns * self.kept[unit.index] // unit.width
        target = self.budget.target - self.budget.of_heads
        share = target / sum(other.parameters for other in self.prunable)
        return round(unit.n_columns * (1.0 - min(share, 1.0)))

    def parameters_now(self) -> int:
        """Count the parameters of the model as it is cut by now.

        Counted through the units: offloading may have split tied embeddings in two.
        """
        return self._other_parameters + self._parameters_of_units()

    def _parameters_of_units(self) -> int:
        units = (*self.layout.blocks, *(self.heads.units if self.heads else ()))
        return sum(unit.parameters for unit in units)


def check_ignore(patterns: Sequence[str], units: Sequence[Unit]) -> None:
    """Refuse a pattern of `ignore` that means nothing.

    Raises:
        RecipeError: one matches no MLP.
    """
    names = [unit.name for unit in units]
    for pattern in patterns:
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except re.error as error:
            raise RecipeError(f"ignore: {pattern!r} is no regular expression: {error}.") from error
        if not any(match_name(name, pattern) for name in names):
            raise RecipeError(
                f"ignore: {pattern!r} matches no MLP; they are called {names[0]} to "
                f"{names[-1]}, and a regular expression starts with 're:'."
            )
