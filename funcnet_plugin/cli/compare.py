"""`funcnet compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import (
    AsJson,
    Calibration,
    IncludePath,
    Limit,
    Model,
    Tasks,
    TestWindows,
    TextColumn,
    pairs_of,
    recipe_fields,
    stdout_for_json,
    swept_fields,
)
from funcnet_plugin.errors import FuncnetError


def compare(
    model: Model,
    data: Calibration,
    text: Annotated[
        list[str], typer.Option(help="NAME=FILE, a text to measure on; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the results; an old one goes on.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Known name or NAME=RECIPE.yaml; may be repeated. All known ones if not given; "
            "any other name lists them."
        ),
    ] = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="0.1, 0.2 and 0.3 if not given; may be repeated.")
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            help="Repair by name, as it is by default, instead of the recipes'; may be repeated."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="0 if not given; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE, for all methods that know it; see funcnet prune."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Several values, FIELD=VALUE,VALUE; may be repeated."),
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Calibration windows (160); may be repeated.")
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window, both kinds.")] = 512,
    windows: TestWindows = 64,
    text_column: TextColumn = "text",
    task: Tasks = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    measure_once: Annotated[
        bool,
        typer.Option(help="Ratios share what is measured; only the first has seconds, peak MB."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare pruning methods: perplexity in and out of the domain of calibration.

    Writes rows.jsonl (one row at a time, so an interrupted comparison goes on), table.md, table.csv
    and a plot for every axis with several values: ratio.png, samples.png, repair-epochs.png.

    Example: `funcnet compare ./llama --data wiki.jsonl --text wiki=test.jsonl
    --text plays=plays.jsonl --method best --method flap --ratio 0.2 --out ./comparison`
    """
    from funcnet_plugin.compare import METHODS, Comparison, table, write_plots
    from funcnet_plugin.compare import compare as run
    from funcnet_plugin.text.sources import parse_sources

    plan = Comparison(
        model=model,
        data=parse_sources(data),
        texts=pairs_of(text, "--text"),
        methods=method or list(METHODS),
        ratios=ratio or (0.1, 0.2, 0.3),
        repairs=repair or ("",),
        seeds=seed or (0,),
        overrides=recipe_fields(set_ or []),
        sweeps=swept_fields(sweep or []),
        samples=samples or (160,),
        window=window,
        windows=windows,
        text_column=text_column,
        tasks=task or (),
        include_path=None if include_path is None else str(include_path),
        limit=limit,
        measure_once=measure_once,
    )
    console = Console(stderr=True)
    with stdout_for_json(as_json):
        rows = run(plan, out, lambda row: console.print(_one_line(row), highlight=False))
    (out / "table.md").write_text(table.markdown(rows, plan))
    (out / "table.csv").write_text(table.as_csv(rows, plan))
    write_plots(rows, plan, out)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(table.markdown(rows, plan))
    if len(rows) > 1 and all("refused" in row for row in rows[1:]):
        raise FuncnetError(f"no method could prune {model}; the table says why.")


def _one_line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{row['method']} at {row['ratio']:g}: {row['refused']}"
    where = f" at {row['ratio']:g}, seed {row['seed']}" if "ratio" in row else ""
    return f"{row['method']}{where}: gm {row['gm']:.3f}, worst {row['worst']:.3f}"
