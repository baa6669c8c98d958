"""`funcnet inspect`.

The file is not called inspect: Python's own module of that name would be hidden from whoever runs a
file of this directory.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from funcnet_plugin.cli.arguments import AsJson, stdout_for_json
from funcnet_plugin.cli.listing import list_adapters, list_parts
from funcnet_plugin.cli.memory import memory_of, show_memory
from funcnet_plugin.errors import FuncnetError

if TYPE_CHECKING:
    from funcnet_plugin.inspection import ModelShape


def inspect(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory or hub name.", show_default=False)
    ] = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Ratio to plan; may be repeated.")
    ] = None,
    align: Annotated[int, typer.Option(help="Kept widths are multiples of this.")] = 128,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="List the adapters that are installed instead.")
    ] = False,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="List scorers, repairs, decomposers, and their parameters."),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe file or name: show what its stages need in memory."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows, for --recipe.")] = 160,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window, for --recipe.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Show adapter, layers, widths, parameters, and what a ratio would give. Loads no weights.

    Example: `funcnet inspect meta-llama/Llama-3.2-1B --ratio 0.2 --ratio 0.3`

    Memory: `funcnet inspect meta-llama/Llama-2-7b --recipe ica_prune --samples 512 --length 2048`
    """
    if adapters:
        list_adapters(as_json)
        return
    if parts:
        list_parts(as_json)
        return
    if model is None:
        raise FuncnetError("name a MODEL to inspect, or ask for --adapters or --parts.")
    from funcnet_plugin.inspection import inspect_model

    with stdout_for_json(as_json):
        shape = inspect_model(model, tuple(ratio or (0.1, 0.2, 0.3)), align)
        found = None if recipe is None else memory_of(model, recipe, samples, length)
    if as_json:
        print(json.dumps(asdict(shape) | ({} if found is None else {"memory": found}), indent=2))
        return
    console = Console()
    console.print(f"[bold]{shape.source}[/]: {shape.architecture}, adapter {shape.adapter}")
    widths = sorted(set(shape.widths))
    console.print(
        f"{len(shape.widths)} layers of width {', '.join(map(str, widths))}; "
        f"{shape.parameters:,} parameters, {shape.mlp_parameters / shape.parameters:.1%} in MLPs"
    )
    console.print(_heads(shape))
    table = Table("ratio asked", "kept width", "ratio reached", "parameters left")
    for reach in shape.reaches:
        if reach.kept_width is None:
            table.add_row(f"{reach.ratio:g}", "-", "-", reach.reason)
        else:
            table.add_row(
                f"{reach.ratio:g}",
                str(reach.kept_width),
                f"{reach.reached:.4f}",
                f"{reach.parameters:,}" + (f" ({reach.reason})" if reach.reason else ""),
            )
    console.print(table)
    if found is not None:
        show_memory(found)


def _heads(shape: ModelShape) -> str:
    """Say what `heads_ratio` can cut."""
    heads = shape.heads
    if heads.key_value_heads is None:
        return heads.reason.removesuffix("; leave heads_ratio out.") + "."
    return (
        f"{heads.key_value_heads} key-value heads with {heads.queries} query heads each in every "
        f"layer, {heads.parameters / shape.parameters:.1%} of the parameters with one of them; "
        f"heads_ratio can leave {', '.join(map(str, heads.possible))}"
    )
