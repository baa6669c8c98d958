"""Turns a pruning ratio into how many neurons each layer keeps.

The ratio counts parameters, and neurons make up for what heads do not give of it. Kept widths are
multiples of `align`, so the removed share differs from the request by at most half an aligned step;
what is reached is computed exactly, from the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funcnet_plugin.errors import BudgetError

# More than so many times what was asked is another request; a nearer cut, if so far, is warned of.
_REFUSED, _WARNED = 2.0, 0.25
_ALIGNS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class LayerSize:
    """Describes one decoder layer as the budget sees it.

    Attributes:
        width: number of neurons.
        cost: parameters that go with one neuron.
        prunable: False for layers that `skip_first` and `skip_last` leave whole.
    """

    width: int
    cost: int
    prunable: bool = True


@dataclass(frozen=True)
class Budget:
    """Holds a ratio that is known to be reachable.

    Attributes:
        layers: sizes before pruning.
        align: kept widths of pruned layers are multiples of this.
        scope_parameters: the parameters that the ratio counts.
        target: parameters to remove, ``ratio * scope_parameters``.
        of_heads: parameters that go with heads.
    """

    layers: tuple[LayerSize, ...]
    align: int
    scope_parameters: int
    target: float
    of_heads: int = 0

    def removed(self, kept: Sequence[int]) -> int:
        """Count the parameters that go, with heads, when layer i keeps kept[i] neurons."""
        neurons = ((s.width - w) * s.cost for s, w in zip(self.layers, kept, strict=True))
        return self.of_heads + sum(neurons)

    def uniform(self) -> list[int]:
        """Keep one width in every prunable layer: the aligned one nearest to the target."""
        best = min(
            _uniform_widths(self.layers, self.align),
            key=lambda w: abs(self.removed(_all_at_most(self.layers, w)) - self.target),
        )
        return _all_at_most(self.layers, best)

    def far_from_asked(self, kept: Sequence[int]) -> str | None:
        """Say it where the kept widths are far from what was asked; None where they are not."""
        return far_from_asked(
            self.target / self.scope_parameters,
            self.removed(kept) / self.scope_parameters,
            f"one step of align={self.align} is that large",
        )

    def threshold(self, scores: Sequence[Tensor | None]) -> list[int]:
        """Cut over all layers at once: whole blocks of `align` neurons go, weakest first.

        With align=1 this is a threshold on the score, the paper's rule. Each layer keeps at least
        one block.

        Args:
            scores: per layer (width,), larger is more important, comparable across layers; None
                for layers that are not prunable.
        """
        kept = [s.width for s in self.layers]
        blocks = []  # (mean score, layer, neurons); the first block of a layer always stays
        for i, (size, score) in enumerate(zip(self.layers, scores, strict=True)):
            if not size.prunable:
                continue
            ranked = score.double().sort(descending=True).values
            # Only the last block may be short, and then removing it alone gives an aligned width.
            for start in range(self.align, size.width, self.align):
                block = ranked[start : start + self.align]
                blocks.append((float(block.mean()), i, len(block)))
        # A layer's blocks are ordered by score, so going from the weakest never skips one of it;
        # among equals the later layer, then the later block goes first, always the same way.
        order = sorted(range(len(blocks)), key=lambda b: (blocks[b][0], -b))
        removed = self.of_heads
        for n, b in enumerate(order):
            _, i, neurons = blocks[b]
            step = neurons * self.layers[i].cost
            if n and abs(removed + step - self.target) >= abs(removed - self.target):
                break
            kept[i] -= neurons
            removed += step
        return kept


def _uniform_widths(layers: Sequence[LayerSize], align: int) -> range:
    return range(align, max(s.width for s in layers if s.prunable), align)


def _all_at_most(layers: Sequence[LayerSize], width: int) -> list[int]:
    return [min(width, s.width) if s.prunable else s.width for s in layers]


def _smallest_cut(layers: Sequence[LayerSize], align: int, one_width: bool) -> int:
    """Count the parameters that go at least, if any do."""
    if one_width:
        kept = _all_at_most(layers, _uniform_widths(layers, align)[-1])
        return sum((s.width - w) * s.cost for s, w in zip(layers, kept, strict=True))
    return min((s.width - (s.width - 1) // align * align) * s.cost for s in layers if s.prunable)


def far_from_asked(asked: float, reached: float, why: str) -> str | None:
    """Say it where what was reached is far from what was asked; None where it is not.

    Args:
        why: what makes it so.
    """
    if abs(reached - asked) <= _WARNED * asked:
        return None
    return f"asked to remove {asked:g}, and {reached:.4f} goes: {why}"


def check_step(asked: float, least: float, why: str) -> None:
    """Refuse a ratio that one step is far beyond.

    Args:
        least: what goes at least.
        why: what makes it so.

    Raises:
        BudgetError: more than twice as much as asked.
    """
    if least > _REFUSED * asked:
        raise BudgetError(
            f"pruning_ratio={asked:g} is far less than can be removed: {least:.4f} goes at least, "
            f"since {why}; ask for about that much."
        )


def plan_budget(
    layers: Sequence[LayerSize],
    *,
    ratio: float,
    align: int,
    total_parameters: int,
    scope: str = "model",
    one_width: bool = True,
    of_heads: int = 0,
) -> Budget:
    """Check that a ratio can be reached before any long work.

    Args:
        layers: one per decoder layer.
        ratio: share of parameters to remove, in (0, 1).
        align: kept widths are multiples of this.
        total_parameters: all parameters of the model, shared ones counted once.
        scope: "model": the ratio counts total_parameters; "mlp": the parameters of all MLPs.
        one_width: whether all layers are to be cut to one width, or each by as much as it bears.
        of_heads: parameters that go with heads, as part of the ratio; 0 where scope is "mlp".

    Raises:
        BudgetError: the ratio is outside (0, 1), more than these layers can give, less than half of
            the smallest step, or less than what goes with heads; the message holds the ratio that
            can be reached.
    """
    if not 0.0 < ratio < 1.0:
        raise BudgetError(f"pruning_ratio must lie between 0 and 1, got {ratio}.")
    if align < 1:
        raise BudgetError(f"align must be at least 1, got {align}.")
    prunable = [s for s in layers if s.prunable]
    if not prunable:
        raise BudgetError(
            f"skip_first and skip_last leave none of the {len(layers)} layers to prune."
        )
    narrow = [s.width for s in prunable if s.width <= align]
    if narrow:
        raise BudgetError(
            f"align={align} leaves nothing to cut in layers of width {narrow[0]}; "
            f"choose an align below {narrow[0]}."
        )
    counted = total_parameters if scope == "model" else sum(s.width * s.cost for s in layers)
    target = ratio * counted
    if of_heads >= target:
        raise BudgetError(
            f"pruning_ratio={ratio:g} is reached without any neuron: the heads that go are "
            f"{of_heads / counted:.4f} of the model; lower heads_ratio, or raise pruning_ratio."
        )
    largest = of_heads + sum((s.width - align) * s.cost for s in prunable)
    step = sum(align * s.cost for s in prunable)
    if target > largest + step / 2:
        raise BudgetError(
            f"pruning_ratio={ratio} of the {'model' if scope == 'model' else 'MLPs'} cannot be "
            f"reached: with one block of {align} neurons left in each of {len(prunable)} prunable "
            f"layers at most {largest / counted:.4f} goes; lower the ratio or align, or skip fewer "
            "layers."
        )
    smallest = of_heads + _smallest_cut(layers, align, one_width)
    if smallest > _REFUSED * target:
        finer = [a for a in _ALIGNS if a < align]
        most = _REFUSED * target - of_heads
        fine = [a for a in finer if _smallest_cut(layers, a, one_width) <= most]
        raise BudgetError(
            f"pruning_ratio={ratio:g} of the {'model' if scope == 'model' else 'MLPs'} is far less "
            f"than one step: with align={align} at least {smallest / counted:.4f} goes; ask for "
            f"about that much{f', or set align: {fine[0]}' if fine else ''}."
        )
    return Budget(tuple(layers), align, counted, target, of_heads)


def select(score: Tensor, keep: int) -> Tensor:
    """Give the indices of the `keep` highest scores, ascending; ties go to the lower index.

    Args:
        score: (width,), any floating dtype.

    Returns:
        (keep,), int64, on the device of `score`.
    """
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:keep].sort().values
