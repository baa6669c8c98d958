"""`funcnet demo`: the whole path on the model that comes with the package."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from funcnet_plugin.errors import CheckpointError
from funcnet_plugin.output import check_directory

MODEL = Path(__file__).parent / "model"
# The packaged recipe is made for real models; this one has 512 neurons per layer.
OVERRIDES = {"align": 8}
_SAMPLES, _WINDOW = 160, 128  # calibration: five groups of 32, as long as the training sequences
_OURS = (
    "pruned", "random", "tasks", "atlas", "lesions", "atlas.html", "report.html", "results.json",
    "skills.png", "widths.png", "networks.png",
)  # fmt: skip
_MARK = ".funcnet-demo"  # names like those above may be anyone's


def run_demo(
    out: Path,
    *,
    console: Console,
    ratio: float = 0.5,
    recipe: Path | None = None,
    limit: int = 100,
) -> dict[str, Any]:
    """Prune, compare with a random choice, find what the networks carry, report.

    Args:
        out: new directory, or one that an earlier demo wrote.
        console: where steps and the table are printed.
        ratio: share of all parameters to remove.
        recipe: recipe file instead of the packaged one; its fields are taken as they are.
        limit: questions per skill.

    Returns:
        what results.json holds.

    Raises:
        FuncnetError: `out` holds other files, or the ratio or the recipe cannot be used.
    """
    check_place(out)

    from funcnet_plugin.demo.evaluate import evaluate, measure_speed
    from funcnet_plugin.demo.networks import find_networks
    from funcnet_plugin.demo.report import (
        headline,
        result_rows,
        terminal_table,
        write_json,
        write_page,
        write_plots,
    )
    from funcnet_plugin.demo.story import carrier_table, draw_networks, sentence, summary
    from funcnet_plugin.report import write_report

    console.print("[bold]1/5[/] pruning with llm-compressor's oneshot ...")
    with tempfile.TemporaryDirectory() as folder:  # a wrong recipe must not cost an earlier demo
        overrides = None if recipe else OVERRIDES
        block = _prune(Path(folder) / "pruned", ratio, recipe, overrides)
        make_room(out)
        shutil.move(Path(folder) / "pruned", out / "pruned")
    console.print("[bold]2/5[/] pruning as much by a random choice ...")
    _prune(out / "random", ratio, _random_recipe(), OVERRIDES)
    models = {}
    for name, path in (("dense", MODEL), ("pruned", out / "pruned"), ("random", out / "random")):
        console.print(f"[bold]3/5[/] scoring the {name} model with lm-eval ...")
        models[name] = evaluate(path, out / "tasks", limit=limit)
    speeds = measure_speed([MODEL, out / "pruned"])
    console.print("[bold]4/5[/] finding the networks of the dense model, silencing each ...")
    anatomy = find_networks(MODEL, out)
    console.print("[bold]5/5[/] writing the report ...")
    write_report(out / "atlas", out / "atlas.html", out / "lesions" / "choose", out / "pruned")
    rows = result_rows(*models.values(), speeds)
    plots = [
        *write_plots(out, *models.values(), block),
        draw_networks(out / "networks.png", anatomy),
    ]
    page = write_page(out, rows, block, plots, anatomy, "atlas.html")
    results = write_json(out, models, speeds, block, anatomy)
    console.print(headline(block))
    console.print(terminal_table(rows))
    console.print(carrier_table(anatomy))
    for line in (*summary(anatomy), *(sentence(c) for c in anatomy.carriers if c.hurts_it_alone)):
        console.print(line, soft_wrap=True)
    console.print(f"page: {page}\nmodel: {out / 'pruned'}", soft_wrap=True)
    return results


def _prune(
    out: Path, ratio: float, recipe: Path | str | None, overrides: dict[str, Any] | None
) -> dict[str, Any]:
    from funcnet_plugin.demo.skills import documents
    from funcnet_plugin.pruning import prune

    return prune(
        MODEL,
        # five lines are a little less than a window
        documents(2 * _SAMPLES, seed=0, split="train"),
        out,
        ratio=ratio,
        recipe=recipe,
        overrides=overrides,
        samples=_SAMPLES,
        window=_WINDOW,
    )


def _random_recipe() -> str:
    """Write the packaged recipe with random scores in the place of networks and effect."""
    from funcnet_plugin.recipe import dump_recipe, load_recipe, pruning_modifier

    _, fields = pruning_modifier(load_recipe("ica_prune"))
    modifier = {"WidthPruningModifier": fields | {"scorer": "random"}}
    return dump_recipe({"prune_stage": {"pruning_modifiers": modifier}})


def check_place(out: Path) -> None:
    """Refuse to replace anything but an earlier demo.

    Raises:
        CheckpointError: `out` cannot be written, or holds something that no demo marked as its own.
    """
    check_directory(out)
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    foreign = sorted(present - {*_OURS, _MARK} if _MARK in present else present)
    if foreign:
        raise CheckpointError(
            f"{out} is not marked as a demo's and holds {', '.join(foreign[:3])}; give a new "
            "directory with --out."
        )


def make_room(out: Path) -> None:
    """Leave nothing in a checked directory but the mark of a demo."""
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
