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
_OURS = ("pruned", "tasks", "report.html", "results.json", "skills.png", "widths.png")
_MARK = ".funcnet-demo"  # names like those above may be anyone's


def run_demo(
    out: Path,
    *,
    console: Console,
    ratio: float = 0.2,
    recipe: Path | None = None,
    limit: int = 100,
) -> dict[str, Any]:
    """Evaluate, prune, reload, evaluate, report.

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
    from funcnet_plugin.demo.report import (
        headline,
        result_rows,
        terminal_table,
        write_json,
        write_page,
        write_plots,
    )
    from funcnet_plugin.demo.skills import documents
    from funcnet_plugin.pruning import prune

    console.print("[bold]1/4[/] pruning with llm-compressor's oneshot ...")
    with tempfile.TemporaryDirectory() as folder:  # a wrong recipe must not cost an earlier demo
        block = prune(
            MODEL,
            # five lines are a little less than a window
            documents(2 * _SAMPLES, seed=0, split="train"),
            Path(folder) / "pruned",
            ratio=ratio,
            recipe=recipe,
            overrides=None if recipe else OVERRIDES,
            samples=_SAMPLES,
            window=_WINDOW,
        )
        make_room(out)
        shutil.move(Path(folder) / "pruned", out / "pruned")
    console.print("[bold]2/4[/] scoring the dense model with lm-eval ...")
    dense = evaluate(MODEL, out / "tasks", limit=limit)
    console.print("[bold]3/4[/] scoring the pruned model, reloaded by stock transformers ...")
    pruned = evaluate(out / "pruned", out / "tasks", limit=limit)
    console.print("[bold]4/4[/] measuring speed, writing the report ...")
    speeds = measure_speed([MODEL, out / "pruned"])
    rows = result_rows(dense, pruned, speeds)
    page = write_page(out, rows, block, write_plots(out, dense, pruned, block))
    results = write_json(out, dense, pruned, speeds, block)
    console.print(headline(block))
    console.print(terminal_table(rows))
    console.print(f"page: {page}\nmodel: {out / 'pruned'}", soft_wrap=True)
    return results


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
