"""`funcnet prune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import (
    AsJson,
    Calibration,
    Model,
    Samples,
    TextColumn,
    Window,
    recipe_fields,
    stdout_for_json,
)
from funcnet_plugin.recipe import packaged_recipes
from funcnet_plugin.screen import span


def prune(
    model: Model,
    data: Calibration,
    out: Annotated[Path, typer.Option(help="New directory for the pruned model.")],
    ratio: Annotated[float | None, typer.Option(help="Share of all parameters to remove.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help=f"Recipe file, or one of {', '.join(packaged_recipes())}; ica_prune if not given."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Recipe field, or parameter of a part, FIELD=VALUE: align=64, repair.epochs=2, "
            "scorer.networks.n_components=64; may be repeated.",
        ),
    ] = None,
    samples: Samples = 160,
    window: Window = 512,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; chosen if not given.")
    ] = None,
    text_column: TextColumn = "text",
    export_: Annotated[
        str | None,
        typer.Option("--export", help="Another form, see funcnet export --help."),
    ] = None,
    from_atlas: Annotated[
        Path | None,
        typer.Option(help="Atlas of the model: its networks are taken, and not found again."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model and save it; stock transformers loads it if all layers keep one width.

    Example: `funcnet prune ./llama --data wiki.jsonl --ratio 0.2 --out ./llama-20 --set align=64`
    """
    from funcnet_plugin.pruning import prune as run
    from funcnet_plugin.text.sources import parse_sources

    with stdout_for_json(as_json):
        block = run(
            model,
            parse_sources(data),
            out,
            ratio=ratio,
            recipe=recipe,
            overrides=recipe_fields(set_ or []),
            samples=samples,
            window=window,
            batch_size=batch_size,
            text_column=text_column,
            export=export_,
            from_atlas=from_atlas,
        )
    if as_json:
        print(json.dumps(block, indent=2))
        return
    Console(soft_wrap=True).print(f"[bold]{out}[/]: {_removed(block)}")


def _removed(block: dict[str, Any]) -> str:
    """Say what this run removed, and what all runs did where there were others before."""
    own = block.get("runs", [block])[-1]
    said = (
        f"{own['parameters_before']:,} -> {own['parameters_after']:,} parameters, "
        f"{own['pruning_ratio_reached']:.4f} removed (asked: {own['pruning_ratio_requested']:g})"
    )
    if "runs" in block:
        said += (
            f"; with the runs before, {block['pruning_ratio_overall']:.4f} of the "
            f"{block['parameters_before']:,} in {block['source_model'] or 'the first model'}"
        )
    return f"{said}; {_left(block)}"


def _left(block: dict[str, Any]) -> str:
    """Say what a modifier left: neurons, layers or axes of the hidden states."""
    names = {"kept_widths": "widths", "kept_layers": "layers", "hidden_size": "hidden size",
             "kept_key_value_heads": "key-value heads"}  # fmt: skip
    found = {name: block[key] for key, name in names.items() if key in block}
    if "widths" in found:
        found["widths"] = span(found["widths"])
    return ", ".join(f"{name} {left}" for name, left in found.items())
