"""`funcnet atlas`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

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


def atlas(
    model: Model,
    data: Calibration,
    out: Annotated[Path, typer.Option(help="New directory for the atlas.")],
    components: Annotated[int, typer.Option(min=2, help="Networks of each layer.")] = 64,
    strategy: Annotated[
        str,
        typer.Option(
            help="local: networks within layers; windows: across three neighbouring layers; "
            "global: across all."
        ),
    ] = "local",
    signals: Annotated[
        str,
        typer.Option(
            help="What networks are of, with commas: neurons by act (activated gate), up (up "
            "projection), product (of the two); or channels of modules by path in a decoder layer: "
            "input:self_attn.o_proj (attention heads), output:mlp, output (of the layer)."
        ),
    ] = "act,up",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Other parameters of the scorer networks, NAME=VALUE: samples_per_group=40; may "
            "be repeated.",
        ),
    ] = None,
    samples: Samples = 160,
    window: Window = 512,
    seed: Annotated[int, typer.Option(min=0, help="Decides windows and random starts.")] = 0,
    text_column: TextColumn = "text",
    as_json: AsJson = False,
) -> None:
    """Find the functional networks of a model: which neurons, what moves them, what they raise.

    Writes atlas.json, networks, courses and connectivity.safetensors, and contexts.parquet.

    Example: `funcnet atlas ./llama --data wiki.jsonl --out ./llama-atlas`, of attention heads
    `--signals input:self_attn.o_proj`
    """
    from funcnet_plugin.surveying import make_atlas
    from funcnet_plugin.text.sources import parse_sources

    names = [name.strip() for name in signals.split(",") if name.strip()]
    with stdout_for_json(as_json):
        found = make_atlas(
            model,
            parse_sources(data),
            out,
            parameters={"n_components": components, "strategy": strategy, "signals": names}
            | recipe_fields(set_ or []),
            samples=samples,
            window=window,
            text_column=text_column,
            seed=seed,
        )
    if as_json:
        networks = [{"name": name, **one.facts} for name, one in found.networks.items()]
        print(json.dumps({**found.facts, "networks": networks}, indent=2))
        return
    again = [
        stability
        for network in found.networks.values()
        if (stability := network.facts["stability_groups"]) is not None
    ]
    likeness = f", found again in other text at {statistics.median(again):.2f}" if again else ""
    Console(soft_wrap=True).print(
        f"[bold]{out}[/]: {len(found.networks)} networks in {len(found.blocks)} blocks{likeness}; "
        f"{found.facts['structure']['clusters']} clusters"
    )
