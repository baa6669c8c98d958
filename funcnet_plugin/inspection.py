"""Finds what a model looks like to the pruning, without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from funcnet_plugin.errors import AdapterError, BudgetError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reach:
    """Says what one pruning ratio would give with equal widths in all layers."""

    ratio: float
    kept_width: int | None  # None: cannot be reached, `reason` says why
    reached: float | None
    parameters: int | None
    reason: str | None = None  # or why it is reached from afar only


@dataclass(frozen=True)
class Heads:
    """Says which heads of a model can be cut: key-value heads with the queries that share them.

    Attributes:
        key_value_heads: of every layer; None where none can be cut, `reason` says why.
        queries: heads that share one of them.
        possible: how many key-value heads may be left.
        parameters: that go in all layers with one key-value head.
    """

    key_value_heads: int | None = None
    queries: int | None = None
    possible: list[int] | None = None
    parameters: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelShape:
    """Describes a model as the pruning sees it.

    Attributes:
        source: what was inspected.
        architecture, adapter: model class name, adapter name.
        widths: neurons per layer.
        parameters, mlp_parameters: counts, shared tensors once.
        max_length: positions the model was made for; None if its config does not say.
        reaches: one per ratio asked for, neurons alone.
        heads: what `heads_ratio` can cut.
    """

    source: str
    architecture: str
    adapter: str
    widths: list[int]
    parameters: int
    mlp_parameters: int
    max_length: int | None
    reaches: list[Reach]
    heads: Heads


def inspect_model(
    source: str | Path, ratios: tuple[float, ...] = (), align: int = 128
) -> ModelShape:
    """Build the model on the meta device and measure it.

    Args:
        source: checkpoint directory or hub name.
        ratios: pruning ratios of all parameters to plan.
        align: kept widths are multiples of this.

    Raises:
        CheckpointError: nothing to load there, or it is quantized already.
        AdapterError: no adapter fits.
    """
    from funcnet_plugin.adapters import bind, count_parameters
    from funcnet_plugin.checkpoints.loading import load_config, max_length, model_without_weights
    from funcnet_plugin.checkpoints.weights import check_weights, has_weights
    from funcnet_plugin.cut.budget import LayerSize, plan_budget

    model = model_without_weights(source)
    if has_weights(Path(source)):
        check_weights(source, load_config(source))
    layout = bind(model)
    sizes = [LayerSize(block.width, block.parameters_per_piece) for block in layout.blocks]
    total = count_parameters(model)
    reaches = []
    for ratio in ratios:
        try:
            budget = plan_budget(sizes, ratio=ratio, align=align, total_parameters=total)
        except BudgetError as error:
            reaches.append(Reach(ratio, None, None, None, str(error)))
            continue
        kept = budget.uniform()
        far = budget.far_from_asked(kept)
        removed = budget.removed(kept)
        reaches.append(Reach(ratio, kept[0], removed / total, total - removed, far))
    return ModelShape(
        source=str(source),
        architecture=type(model).__name__,
        adapter=layout.adapter.name,
        widths=layout.widths,
        parameters=total,
        mlp_parameters=sum(block.parameters for block in layout.blocks),
        max_length=max_length(model),
        reaches=reaches,
        heads=_heads(model, layout.adapter.layers),
    )


def _heads(model: PreTrainedModel, layers: str) -> Heads:
    from funcnet_plugin.cut.heads import HeadPlan

    try:
        plan = HeadPlan(model, layers)
    except AdapterError as error:
        return Heads(reason=str(error))
    queries, one = plan.units[0].query_heads, plan.removed(plan.original - 1)
    return Heads(plan.original, queries, plan.possible, one)
