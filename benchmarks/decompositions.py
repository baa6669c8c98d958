"""What the ways to decompose activity give: variance, stability, selectivity of lesions.

    python benchmarks/decompositions.py --model NAME=DIR --data TEXT --text NAME=FILE ... --out OUT

Every decomposer makes an atlas of the same text. Then each network is silenced by itself, and
beside it random neurons, as many in the same layers; the texts are measured by perplexity. What a
lesion costs is the rise of a text's log perplexity. The selectivity of a decomposer is the share of
all that its networks cost which falls on each network's worst text: 1 where every network serves
one text, one over the number of texts where all lose alike. What a decomposer's networks are worth
for pruning is measured by `funcnet compare`, see docs/experiments/networks.md.

Rows are printed, and go to benchmarks/results/decompositions.jsonl in place of the model's. What
OUT holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from result_rows import RESULTS, replace_rows

from funcnet_plugin.atlas import read_atlas
from funcnet_plugin.lesioning import lesion_study
from funcnet_plugin.lesions.study import Study
from funcnet_plugin.surveying import make_atlas
from funcnet_plugin.text.sources import parse_sources

DECOMPOSERS = {
    "ICA, cube": {"name": "canica"},
    "ICA, logcosh": {"name": "canica", "contrast": "logcosh"},
    "ICA, exp": {"name": "canica", "contrast": "exp"},
    "CanICA of nilearn": {"name": "nilearn"},
    "dictionary": {"name": "dictionary"},
    "pca": {"name": "pca"},
    "nmf": {"name": "nmf"},
    "autoencoder": {"name": "autoencoder"},
}
Perplexities = dict[str, float]  # by text
Row = dict[str, Any]


def selectivity(
    dense: dict[str, float], lesions: Iterable[dict[str, float]]
) -> tuple[float, float]:
    """Tell how much of the cost of lesions falls on the worst text of each.

    Args:
        dense: of the whole model.
        lesions: with each lesion.

    Returns:
        the share; and the cost of one lesion, summed over texts, on average.
    """
    costs = [
        [max(0.0, math.log(lesion[text] / dense[text])) for text in dense] for lesion in lesions
    ]
    whole = sum(map(sum, costs))
    return sum(map(max, costs)) / whole, whole / len(costs)


def measure(args: argparse.Namespace, label: str, texts: dict[str, str]) -> Row:
    folder = args.out / label.replace(", ", "-").replace(" ", "-")
    if not (folder / "atlas").exists():
        make_atlas(
            args.model, parse_sources(args.data), folder / "atlas",
            parameters={"n_components": args.components, "decomposer": DECOMPOSERS[label]},
            samples=args.samples, window=args.window, text_column=args.text_column,
        )  # fmt: skip
    atlas = read_atlas(folder / "atlas")
    study = Study(
        draws=1, texts=texts, text_column=args.text_column, window=args.window,
        windows=args.windows, model_args="dtype=float32",
    )  # fmt: skip
    dense, *rows = lesion_study(args.model, folder / "atlas", folder / "lesions", study)
    networks = [row["texts"] for row in rows if row["draw"] is None]
    others = [row["texts"] for row in rows if row["draw"] is not None]
    facts = [network.facts for network in atlas.networks.values()]

    def average(name: str) -> float | None:
        known = [fact[name] for fact in facts if fact[name] is not None]
        return mean(known) if known else None

    share, cost = selectivity(dense["texts"], networks)
    share_random, cost_random = selectivity(dense["texts"], others)
    return {
        "decomposer": label,
        "networks": len(networks),  # that have members
        "neurons": mean(row["neurons"] for row in rows),
        "explained_variance": mean(b["explained_variance"] for b in atlas.facts["blocks"]),
        "stability_groups": average("stability_groups"),
        "stability_starts": average("stability_starts"),
        "kurtosis": average("kurtosis"),
        "selectivity": share,
        "selectivity_random": share_random,
        "cost": cost,
        "cost_random": cost_random,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME=DIR")
    add("--data", action="append", required=True, help="text of the atlases, PATH or PATH:SHARE")
    add("--text", action="append", required=True, metavar="NAME=FILE", help="to measure on")
    add("--text-column", default="page")
    add("--out", type=Path, required=True)
    add("--decomposer", action="append", choices=list(DECOMPOSERS), help="all if not given")
    add("--components", type=int, default=32)
    add("--samples", type=int, default=160)
    add("--window", type=int, default=128)
    add("--windows", type=int, default=16, help="of each text")
    args = parser.parse_args()
    name, args.model = args.model.split("=", 1)
    texts = dict(text.split("=", 1) for text in args.text)
    rows = []
    for label in args.decomposer or DECOMPOSERS:
        rows.append(measure(args, label, texts))
        print(json.dumps(rows[-1]), flush=True)
    replace_rows(RESULTS / "decompositions.jsonl", rows, model=name)


if __name__ == "__main__":
    main()
