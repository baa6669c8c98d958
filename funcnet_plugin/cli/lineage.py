"""`funcnet lineage`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import AsJson


def lineage(
    atlas: Annotated[Path, typer.Argument(help="Atlas of the model that others may stem from.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="OTHER...", help="Atlases of other models, same text.")
    ],
    unrelated: Annotated[
        list[Path] | None,
        typer.Option(
            help="Atlas of a model that surely has no common origin with ATLAS, same text; three "
            "or more say how often such a model would be as similar."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether models stem from the same one: pruned, quantized, tuned, neurons reordered.

    All atlases are made with the same options, of models that share a tokenizer.

    Example: `funcnet lineage ./llama-atlas ./suspect-atlas --unrelated ./a --unrelated ./b
    --unrelated ./c`
    """
    from funcnet_plugin.atlas.lineage import (
        MEASURED,
        check_references,
        false_alarms,
        kinship,
        read_activity,
        verdict,
    )
    from funcnet_plugin.bars import bar
    from funcnet_plugin.screen import table

    if unrelated:
        check_references(len({path.resolve() for path in unrelated}))
    mine = read_activity(atlas)
    references = [
        kinship(mine, read_activity(path)).similarity
        for path in bar(unrelated or [], "unrelated models" if unrelated else "", "atlas")
    ]
    known = references if unrelated else list(MEASURED)
    rows = []
    for path in bar(others, "comparing", "atlas"):
        found = kinship(mine, read_activity(path), str(path))
        said = verdict(found.similarity, known)
        rows.append((path, found, false_alarms(found.similarity, known), said))
    if as_json:
        content = {
            "atlas": str(atlas),
            "unrelated": [
                {"atlas": str(path), "similarity": similarity}
                for path, similarity in zip(unrelated or [], references, strict=True)
            ],
            "others": [
                {
                    "atlas": str(path),
                    "similarity": found.similarity,
                    "of_first": found.of_first,
                    "of_second": found.of_second,
                    "false_alarms": rate,
                    "verdict": said,
                    "blocks": {
                        block: {"best": other, "share": share}
                        for block, (other, share) in found.blocks.items()
                    },
                }
                for path, found, rate, said in rows
            ],
        }
        print(json.dumps(content, indent=2))
        return
    cells = [
        [str(path), f"{found.similarity:.3f}", "below 0.001" if rate < 0.001 else f"{rate:.3f}",
         said]
        for path, found, rate, said in rows
    ]  # fmt: skip
    heads = ["atlas", "similarity", "false alarms", "verdict"]
    span = f"{min(known):.3f} to {max(known):.3f}"
    source = (
        f"{len(known)} unrelated models given here ({span})"
        if unrelated
        else f"{len(known)} unrelated pairs of small models ({span}); --unrelated tells it for "
        "this text"
    )
    Console(soft_wrap=True, highlight=False, markup=False).print(
        f"{table(heads, cells)}\nfalse alarms: share of unrelated models that would be as similar, "
        f"by {source}"
    )
