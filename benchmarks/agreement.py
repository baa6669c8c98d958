"""Agreement of functional networks over the amount of text, its kind, and the pruning ratio.

    python benchmarks/agreement.py --data DIR --model NAME=MODEL --out OUT [--samples 40 ...]

DIR holds `text/c4.jsonl`, `wikitext-2/valid.jsonl` and `domains/{shakespeare,speeches}.jsonl`,
records with the text in "page". C4 is cut into two halves of its documents, so that two atlases of
as many samples share no text. For each number of samples both halves get an atlas; it is matched
with that of the other half, and with that of the most samples of its own half. Then each kind of
text gets an atlas of `--domain-samples` samples, and is matched with every other kind. Last, the
model is pruned by `prune_fast` at two ratios, and an atlas of each pruned model, of the same
samples, is matched with the dense model's.

An atlas that stands in OUT is not made again. Rows go to benchmarks/results/agreement.jsonl in
place of the model's, and OUT/agreement.png shows them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from result_rows import RESULTS, replace_rows

from funcnet_plugin.atlas import Atlas, read_atlas
from funcnet_plugin.atlas.matching import kept_alike, match
from funcnet_plugin.checkpoints.block import read_kept
from funcnet_plugin.pruning import prune
from funcnet_plugin.recipe import recipe_path
from funcnet_plugin.surveying import make_atlas

RATIOS = (0.1, 0.3)
DOMAINS = {
    "wiki": "wikitext-2/valid.jsonl",
    "plays": "domains/shakespeare.jsonl",
    "speeches": "domains/speeches.jsonl",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Surveys:
    """Makes the atlases of one model, each once."""

    model: str
    out: Path
    window: int
    components: int

    def atlas(self, text: Path, samples: int) -> Atlas:
        return self._made(self.model, text, samples, self.out / f"{text.stem}-{samples}")

    def of_pruned(self, text: Path, samples: int, ratio: float) -> tuple[Atlas, list[list[int]]]:
        """Prune the model and survey what is left; gives the kept neurons, too."""
        pruned = self.out / f"pruned-{ratio}"
        if not pruned.exists():
            prune(
                self.model, text, pruned, ratio=ratio, recipe=recipe_path("prune_fast"),
                overrides={"align": 8}, samples=samples, window=self.window, text_column="page",
            )  # fmt: skip
        atlas = self._made(str(pruned), text, samples, self.out / f"pruned-{ratio}-atlas")
        return atlas, read_kept(pruned)[1]

    def _made(self, model: str, text: Path, samples: int, folder: Path) -> Atlas:
        if not folder.exists():
            print(f"{folder.name}, {samples} samples", flush=True)
            make_atlas(
                model, text, folder, parameters={"n_components": self.components},
                samples=samples, window=self.window, text_column="page",
            )  # fmt: skip
        return read_atlas(folder)


def halves(c4: Path, folder: Path) -> tuple[Path, Path]:
    """Write the even and the odd documents of C4."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = c4.read_text().splitlines(keepends=True)
    files = folder / "web-a.jsonl", folder / "web-b.jsonl"
    for i, file in enumerate(files):
        file.write_text("".join(lines[i::2]))
    return files


def agreement(one: Atlas, other: Atlas, kept: list[list[int]] | None = None) -> Row:
    """Compare two atlases by their networks and, of one model, by the neurons they would keep."""
    found = match(one, other, kept)
    dice = [m.dice for m in found.matches if m.dice is not None]
    row: Row = {
        "similarity": found.similarity, "chance": found.chance, "dice": statistics.mean(dice)
    }  # fmt: skip
    if kept is None:
        row["kept"] = {str(ratio): kept_alike(one, other, ratio) for ratio in RATIOS}
    return row


def rows(
    surveys: Surveys, web: tuple[Path, Path], texts: dict[str, Path], amounts: list[int], each: int
) -> Iterator[Row]:
    """Measure all pairs, amounts of text first."""
    most = max(amounts)
    for samples in sorted(amounts):
        one, other = (surveys.atlas(half, samples) for half in web)
        stable = [network.facts["stability_starts"] for network in one.networks.values()]
        yield {
            "pair": ["web", "other web"], "samples": samples, **agreement(one, other),
            "starts": statistics.mean(value for value in stable if value is not None),
        }  # fmt: skip
        if samples < most:
            yield {
                "pair": ["web", f"web, {most} samples"], "samples": samples,
                **agreement(one, surveys.atlas(web[0], most)),
            }  # fmt: skip
    atlases = {name: surveys.atlas(text, each) for name, text in texts.items()}
    for one, other in combinations(atlases, 2):
        yield {
            "pair": [one, other], "samples": each, **agreement(atlases[one], atlases[other]),
        }  # fmt: skip
    for ratio in RATIOS:
        pruned, kept = surveys.of_pruned(web[0], each, ratio)
        yield {
            "pair": ["web", f"pruned {ratio}"], "samples": each,
            **agreement(atlases["web"], pruned, kept),
        }  # fmt: skip


def plot(found: list[Row], path: Path) -> None:
    """Draw agreement against the number of samples."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as plt

    line = [row for row in found if row["pair"] == ["web", "other web"]]
    at = [row["samples"] for row in line]
    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    panel.plot(at, [row["similarity"] for row in line], "o-", label="maps, cosine")
    panel.plot(at, [row["chance"] for row in line], "o:", label="maps, neurons shuffled")
    panel.plot(at, [row["dice"] for row in line], "s-", label="members, Dice")
    for ratio in map(str, RATIOS):
        panel.plot(at, [row["kept"][ratio] for row in line], "^-", label=f"kept at {ratio}")
    panel.set(xlabel="samples", ylabel="agreement with other text", xscale="log", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--model", required=True, metavar="NAME=DIR")
    add("--out", type=Path, required=True)
    add("--samples", action="append", type=int, help="40, 480, 1500 and 3200 if not given")
    add("--domain-samples", type=int, default=480)
    add("--window", type=int, default=64, help="tokens of a sample")
    add("--components", type=int, default=64)
    args = parser.parse_args()
    name, model = args.model.split("=", 1)
    about = {"window": args.window, "components": args.components}
    web = halves(args.data / "text" / "c4.jsonl", args.out)
    texts = {"web": web[0]} | {key: args.data / file for key, file in DOMAINS.items()}
    surveys = Surveys(model, args.out, args.window, args.components)
    found = []
    for row in rows(
        surveys, web, texts, args.samples or [40, 480, 1500, 3200], args.domain_samples
    ):
        found.append(about | row)
        print(json.dumps(row), flush=True)
    replace_rows(RESULTS / "agreement.jsonl", found, model=name)
    plot(found, args.out / "agreement.png")


if __name__ == "__main__":
    main()
