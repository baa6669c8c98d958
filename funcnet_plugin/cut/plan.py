"""Decides which layers a run cuts, and to which widths: known or not yet, never out of reach."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compressed_tensors.utils import match_name
from loguru import logger
from torch import Tensor, nn

from funcnet_plugin.adapters import Unit, bind, count_parameters
from funcnet_plugin.cut.budget import LayerSize, plan_budget
from funcnet_plugin.errors import RecipeError


class WidthPlan:
    """Holds the widths of a model's units before and after.

    Args:
        model: before pruning.
        ratio, scope, align, one_width: see `plan_budget`.
        skip_first, skip_last: how many layers are left whole at the ends.
        ignore: MLPs left whole: module paths or ``re:`` patterns.

    Attributes:
        layout: the model's units, which follow when they are cut.
        original: widths before pruning.
        parameters: of the model before pruning.
        budget: what the ratio asks for.
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
    ) -> None:
        self.layout = bind(model)
        blocks = self.layout.blocks
        check_ignore(ignore, blocks)
        self.original = self.layout.widths
        self.parameters = count_parameters(model)
        self._other_parameters = self.parameters - sum(block.parameters for block in blocks)
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
        self.budget = plan_budget(
            [LayerSize(b.width, b.parameters_per_piece, b in self.prunable) for b in blocks],
            ratio=ratio,
            align=align,
            total_parameters=self.parameters,
            scope=scope,
            one_width=one_width,
        )
        self.kept: list[int] | None = None

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
        return [*range(self.budget.align, unit.width, self.budget.align), unit.width]

    def expected_columns(self, unit: Unit) -> int:
        """Count the columns of a unit's output projection that are left, on average if open."""
        if self.kept is not None:
            return unit.n_columns * self.kept[unit.index] // unit.width
        share = self.budget.target / sum(other.parameters for other in self.prunable)
        return round(unit.n_columns * (1.0 - min(share, 1.0)))

    def parameters_now(self) -> int:
        """Count the parameters of the model as it is cut by now.

        Counted through the MLPs: offloading may have split tied embeddings in two.
        """
        return self._other_parameters + sum(block.parameters for block in self.layout.blocks)


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
