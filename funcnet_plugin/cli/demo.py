"""`funcnet demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import AsJson, stdout_for_json


def demo(
    out: Annotated[Path, typer.Option(help="Directory for checkpoint, plots and page.")] = Path(
        "demo-output"
    ),
    ratio: Annotated[float, typer.Option(help="Share of all parameters to remove.")] = 0.5,
    recipe: Annotated[Path | None, typer.Option(help="Recipe instead of the demo's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prune the small model that comes with the package and show what it lost.

    Compares with a random choice, and shows which networks carry which skill. Needs no network and
    no data, and takes less than four minutes on two cores.

    Example: `funcnet demo --ratio 0.2 --out /tmp/demo`
    """
    from funcnet_plugin.demo.run import run_demo

    with stdout_for_json(as_json):
        console = Console(stderr=as_json)
        results = run_demo(out, ratio=ratio, recipe=recipe, console=console)
    if as_json:
        print(json.dumps(results, indent=2))
