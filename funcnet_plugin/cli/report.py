"""`funcnet report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    atlas: Annotated[Path, typer.Argument(help="Directory of an atlas.")],
    out: Annotated[Path, typer.Option(help="HTML file.")] = Path("atlas.html"),
    lesions: Annotated[Path | None, typer.Option(help="Results of funcnet lesion.")] = None,
    pruned: Annotated[
        Path | None, typer.Option(help="Pruned checkpoint of the model: shows what was cut.")
    ] = None,
) -> None:
    """Show an atlas as one page that needs no network: networks, what moves them, what they do.

    Example: `funcnet report ./llama-atlas --lesions ./lesions --out atlas.html`
    """
    from funcnet_plugin.report import write_report

    write_report(atlas, out, lesions, pruned)
    Console(soft_wrap=True).print(f"[bold]{out}[/]")
