"""Shows what a recipe needs in memory, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from funcnet_plugin.recipe import load_recipe
from funcnet_plugin.screen import size


def memory_of(model: str, recipe: Path, samples: int, length: int) -> dict[str, Any]:
    """Compute what each stage of a run needs, with a GPU and without; plain values, in bytes.

    Args:
        model: checkpoint directory or hub name.
        recipe: file, or name of a packaged recipe.
        samples, length: of the calibration text.
    """
    from funcnet_plugin.measure.workload import Workload
    from funcnet_plugin.preflight import needed_memory

    plan, work = load_recipe(recipe), Workload(samples, length)
    with_gpu, others = needed_memory(model, plan, work, gpu=True)
    without, _ = needed_memory(model, plan, work, gpu=False)
    stages = [
        {
            "stage": here.name,
            "gpu": here.gpu,
            "host": here.host,
            "host_without_gpu": alone.host,
            "mostly": alone.mostly,
        }
        for here, alone in zip(with_gpu, without, strict=True)
    ]
    figures = ("gpu", "host", "host_without_gpu")
    return {
        "samples": samples,
        "length": length,
        "stages": stages,
        "most": {figure: max(stage[figure] for stage in stages) for figure in figures},
        "others": others,
    }


def show_memory(found: dict[str, Any]) -> None:
    """Print what `memory_of` found."""
    console = Console()
    table = Table("stage", "GPU, GB", "host, GB", "without a GPU: host, GB", "mostly")
    for column in table.columns[1:4]:
        column.justify = "right"
    figures = ("gpu", "host", "host_without_gpu")
    for stage in found["stages"]:
        table.add_row(stage["stage"], *(size(stage[f]) for f in figures), stage["mostly"])
    table.add_section()
    table.add_row("the most", *(size(found["most"][f]) for f in figures), "")
    console.print(
        f"memory for {found['samples']} samples of {found['length']} tokens, at the least: batches "
        "grow where more is free; Python and its libraries take about 1 GB besides",
        soft_wrap=True,
    )
    console.print(table)
    if found["others"]:
        console.print(f"and llm-compressor's own for {', '.join(found['others'])}", soft_wrap=True)
