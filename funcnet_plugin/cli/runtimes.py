"""`funcnet runtimes`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import AsJson


def runtimes(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, pruned or not.")],
    as_json: AsJson = False,
) -> None:
    """Say which runtimes load a checkpoint as it is, which need an export, and what its widths
    cost there. The weights are not read.

    Example: `funcnet runtimes ./llama-20`
    """
    from funcnet_plugin.runtimes import grids, read_checkpoint, ways
    from funcnet_plugin.screen import span, table

    checkpoint = read_checkpoint(model)
    found, allowed = ways(checkpoint), grids(checkpoint)
    remarks = allowed.remarks(len(checkpoint.widths))
    if as_json:
        about = {
            "checkpoint": str(model), "architecture": checkpoint.architecture,
            "widths": list(checkpoint.widths), "quantization": checkpoint.scheme,
            "runtimes": [asdict(way) for way in found],
            "grids": asdict(allowed), "remarks": remarks,
        }  # fmt: skip
        print(json.dumps(about, indent=2))
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    said = [checkpoint.architecture, f"widths {span(checkpoint.widths)}"]
    console.print(", ".join([*said, *filter(None, [checkpoint.scheme])]))
    notes: dict[str, int] = {}
    rows = []
    for way in found:
        number = f"[{notes.setdefault(way.why, len(notes) + 1)}]" if way.why else ""
        rows.append((way.runtime, way.loads, way.export or "", number, way.checked))
    console.print(table(("runtime", "loads", "export", "why", "checked by"), rows))
    for why, number in notes.items():
        console.print(f"[{number}] {why}.")
    if any(way.loads == "as it is" for way in found):
        console.print("A stock checkpoint loads wherever the unpruned model does.")
    splits = ", ".join(map(str, allowed.tensor_parallel[1:])) or "one device only"
    console.print(f"Tensor parallel: {splits}.")
    for remark in remarks:
        console.print(remark)
    form = next((way.export for way in found if way.export), None)
    if form:
        console.print(f"To export: funcnet export {model} --format {form} --out {model}-{form}")
