"""`funcnet match`."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import AsJson


def match(
    atlas: Annotated[Path, typer.Argument(help="Atlas of a model.")],
    other: Annotated[
        Path, typer.Argument(help="Another of the same model, or of one cut from it.")
    ],
    kept: Annotated[
        Path | None,
        typer.Option(help="Pruned checkpoint, or its kept_neurons.json, that OTHER is of."),
    ] = None,
    ratio: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="Share of neurons that goes, for kept neurons."),
    ] = 0.2,
    as_json: AsJson = False,
) -> None:
    """Find the networks of one atlas again in another, of other text or of a pruned model.

    Example: `funcnet match ./atlas-wiki ./atlas-plays`, `funcnet match ./atlas ./atlas-20 --kept
    ./llama-20`
    """
    from funcnet_plugin.atlas import read_atlas
    from funcnet_plugin.atlas.matching import kept_alike
    from funcnet_plugin.atlas.matching import match as run
    from funcnet_plugin.checkpoints.block import read_kept

    mine, theirs = read_atlas(atlas), read_atlas(other)
    found = run(mine, theirs, None if kept is None else read_kept(kept)[1])
    alike = kept_alike(mine, theirs, ratio) if kept is None and mine.of_neurons else None
    if as_json:
        content = {
            "similarity": found.similarity,
            "chance": found.chance,
            "kept_alike": alike,
            "ratio": None if alike is None else ratio,
            "matches": [asdict(one) for one in found.matches],
        }
        print(json.dumps(content, indent=2))
        return
    similarities = [one.similarity for one in found.matches]
    dices = [one.dice for one in found.matches if one.dice is not None]
    said = [
        f"{len(similarities)} networks matched: similarity {found.similarity:.3f} on average "
        f"(shuffled neurons: {found.chance:.3f}), median {statistics.median(similarities):.3f}"
    ]
    if dices:
        said.append(f"members in common (Dice): {statistics.mean(dices):.3f} on average")
    if alike is not None:
        said.append(
            f"neurons that both would keep at {ratio:g}: {alike:.1%} of them "
            f"(random choices: {1 - ratio:.1%})"
        )
    Console(soft_wrap=True, highlight=False).print("\n".join(said))
