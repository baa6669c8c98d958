"""Finds what a model looks like to the pruning, without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from funcnet_plugin.errors import BudgetError


@dataclass(frozen=True)
class Reach:
    """Says what one pruning ratio would give with equal widths in all layers."""

    ratio: float
    kept_width: int | None  # None: cannot be reached, `reason` says why
    reached: float | None
    parameters: int | None
    reason: str | None = None  # or why it is reached from afar only


@dataclass(frozen=True)
class ModelShape:
    """Describes a model as the pruning sees it.

    Attributes:
        source: what was inspected.
        architecture, adapter: model class name, adapter name.
        widths: neurons per layer.
        parameters, mlp_parameters: counts, shared tensors once.
        max_length: positions the model was made for; None if its config does not say.
        reaches: one per ratio asked for.
    """

    source: str
    architecture: str
    adapter: str
    widths: list[int]
    parameters: int
    mlp_parameters: int
    max_length: int | None
    reaches: list[Reach]


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
    )
