"""`funcnet lesion`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from funcnet_plugin.cli.arguments import (
    AsJson,
    IncludePath,
    Limit,
    Model,
    Tasks,
    TestWindow,
    TestWindows,
    TextColumn,
    pairs_of,
    stdout_for_json,
)

if TYPE_CHECKING:
    from funcnet_plugin.lesions.effects import Effect

_ROWS = 30  # printed
_HURTS, _SPARES = 0.1, 0.05  # points of a task, for a double dissociation


def lesion(
    model: Model,
    atlas: Annotated[Path, typer.Option(help="Atlas of the model, see funcnet atlas.")],
    out: Annotated[Path, typer.Option(help="Directory for the results; an old one goes on.")],
    lesion_: Annotated[
        list[str] | None,
        typer.Option(
            "--lesion",
            help="Networks of one lesion: L3.N17+L3.N4, L3, strongest:10, largest:10, sparsest:10, "
            "stable:0.9 or all; enough:TASK:0.95, the fewest that keep a task. May be repeated. "
            "Every network by itself if not given.",
        ),
    ] = None,
    chosen_by: Annotated[
        Path | None,
        typer.Option(
            help="Results of single networks, for --lesion hurting:TASK:N: the N that hurt this "
            "task most and the others least."
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="zero (if not given), mean, amplify or keep; may be repeated."),
    ] = None,
    gain: Annotated[
        list[float] | None, typer.Option(help="Of amplify, 2 if not given; may be repeated.")
    ] = None,
    add: Annotated[float | None, typer.Option(help="Of amplify: added to each activity.")] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(help="Entry of a map, in deviations, that makes a member (3); repeatable."),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=0, help="Sets of random neurons beside each lesion.")
    ] = 5,
    text: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, a text to measure on; may be repeated.")
    ] = None,
    task: Tasks = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    window: TestWindow = 512,
    windows: TestWindows = 16,
    text_column: TextColumn = "text",
    model_args: Annotated[
        str, typer.Option(help="Of lm-eval's model: dtype=float32,add_bos_token=True.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the random neurons.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Take networks out of a running model and measure what is lost, beside random neurons.

    Writes rows.jsonl (an interrupted study goes on) and effects.json.

    Example: `funcnet lesion ./llama --atlas ./llama-atlas --out ./lesions --lesion strongest:10
    --mode zero --mode keep --task piqa --limit 200 --text wiki=test.jsonl`
    """
    from funcnet_plugin.lesioning import lesion_study
    from funcnet_plugin.lesions.effects import as_plain, effects, write_effects
    from funcnet_plugin.lesions.study import Study

    study = Study(
        sets=lesion_ or (),
        chosen_by=chosen_by,
        modes=mode or ("zero",),
        gains=gain or (),
        add=add,
        **({} if threshold is None else {"thresholds": threshold}),
        draws=draws,
        seed=seed,
        texts=pairs_of(text or [], "--text"),
        text_column=text_column,
        window=window,
        windows=windows,
        tasks=task or (),
        include_path=None if include_path is None else str(include_path),
        limit=limit,
        model_args=model_args,
    )
    with stdout_for_json(as_json):
        rows = lesion_study(model, atlas, out, study)
    found = effects(rows)
    write_effects(out, found)
    if as_json:
        print(json.dumps(as_plain(found), indent=2))
        return
    _show(rows, found, out)


def _show(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Effect]], out: Path
) -> None:
    """Print the largest changes; the file has all of them."""
    from funcnet_plugin.lesions.effects import dissociations

    sizes = {row["lesion"]: row for row in rows if row["draw"] is None}
    every = [(label, name, e) for label, of in found.items() for name, e in of.items()]
    # what random neurons would hardly do comes first; a tenth more perplexity is as ten points
    every.sort(key=lambda entry: (entry[2].beyond_chance, abs(entry[2].change)), reverse=True)
    table = Table()
    for title in ("networks", "neurons", "measured on", "change", "random neurons", "by chance"):
        table.add_column(title, overflow="fold")
    for label, name, e in every[:_ROWS]:
        size = sizes[label]
        chance = "-" if e.control is None else _shown(name, e.control)
        if e.low is not None:
            chance += f" ({_shown(name, e.low)} to {_shown(name, e.high)})"
        table.add_row(
            label, f"{size['neurons']} ({size['share']:.2%})", name, _shown(name, e.change),
            chance, "no" if e.beyond_chance else "-",
        )  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table)
    for a, s, b, t in dissociations(found, _HURTS, _SPARES):
        console.print(
            f"double dissociation: without {a}, {s} loses {100 * _HURTS:.0f} points and more and "
            f"{t} at most {100 * _SPARES:.0f}; without {b} it is the other way round"
        )
    console.print(
        "of a text: perplexity against the model as it is; of a task: points won or lost; random "
        f"neurons: mean, and where 95 of 100 draws lie\n[bold]{out / 'effects.json'}[/]: all "
        f"{len(every)} changes"
    )


def _shown(measure: str, change: float) -> str:
    return f"x {exp(change):.3g}" if measure.startswith("text/") else f"{100 * change:+.1f}"
