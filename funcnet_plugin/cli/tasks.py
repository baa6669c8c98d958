"""`funcnet tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from funcnet_plugin.cli.arguments import TextColumn, pairs_of
from funcnet_plugin.errors import FuncnetError


def tasks(
    out: Annotated[Path | None, typer.Option(help="Directory for the tasks to write.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, a perplexity task; may be repeated.")
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="BLiMP jsonl, or a directory of them; may be repeated."),
    ] = None,
    text_column: TextColumn = "text",
) -> None:
    """Make lm-eval tasks from local files, or print where the paper's tasks are.

    Example: `funcnet tasks --out ./tasks --text wiki=test.jsonl --pairs ./blimp`, then
    `lm_eval --model funcnet --include_path ./tasks --tasks wiki ...`
    """
    from funcnet_plugin.tasks import FOLDER, write_local_tasks

    if out is None:
        if text or pairs:
            raise FuncnetError("--text and --pairs need --out, a directory for the tasks.")
        print(FOLDER)
        return
    if not text and not pairs:
        raise FuncnetError("--out needs something to make tasks of: --text NAME=FILE or --pairs.")
    for folder in pairs or []:
        if folder.is_dir() and not any(folder.glob("*.jsonl")):
            raise FuncnetError(f"{folder} holds no .jsonl file; give the directory of the pairs.")
    files = [f for p in pairs or [] for f in (sorted(p.glob("*.jsonl")) if p.is_dir() else [p])]
    named = {name: Path(path) for name, path in pairs_of(text or [], "--text").items()}
    print(",".join(write_local_tasks(out, named, files, text_column)))
