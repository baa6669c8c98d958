"""How well time courses tell models of one origin from others (`funcnet lineage`).

    python benchmarks/lineage.py --data DIR --model MODEL --out OUT [--real PUBLISHED]

DIR holds `wikitext-2/{valid,test_a}.jsonl`, `text/c4.jsonl` and `domains/*.jsonl`, records with the
text in "page"; MODEL is a small LLaMA of English. lineage_models.py makes the others: roots,
trained from nothing with other seeds or for longer, and what is derived of each. Each root and its
derived models are related pairs; a root and all models of another root with the same tokenizer are
unrelated ones. The statistic was chosen on some roots, and is reported on others (`SETS`).
PUBLISHED has related pairs only: no other model shares its tokenizer.

An interrupted run goes on. Rows go to benchmarks/results/lineage.jsonl; `--report` prints what they
say. AUC: a related pair is more alike than an unrelated one, of all such two; the interval is that
of 1000 draws of roots with replacement, in each family.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from lineage_models import DERIVED, OF_REAL, Family, families, train_new
from scipy.optimize import linear_sum_assignment

from funcnet_plugin.atlas.files import read_courses
from funcnet_plugin.atlas.lineage import REFERENCES, kinship, read_activity, verdict
from funcnet_plugin.bars import bar
from funcnet_plugin.surveying import make_atlas

RESULTS = Path(__file__).parent / "results" / "lineage.jsonl"
SETS = {
    "chosen": ("characters-1", "characters-2", "words-1", "words-2"),
    "reported": ("characters-trained", "words-trained", "characters-3", "words-3"),
    "references": ("characters-4", "words-4"),  # nothing is derived of these
    "real": ("real-trained",),
}
STATISTICS = {
    "matched": "courses as they are, networks assigned to each other in each layer: correlation",
    "matched beyond tokens": "the same, what tokens explain taken out",
    "explained": "share that one layer of the other model explains, all networks",
    "explained early": "the same, networks of the first quarter of the layers",
}
DRAWS = 1000


def named(root: str, how: str) -> str:
    return f"{root}-{how.rstrip('%').replace(' ', '-')}" if how else root


def make_models(roots: Iterable[str], known: dict[str, Family], out: Path) -> None:
    """Make all models and their atlases; what is there stays."""
    for root in roots:
        family = known[family_of(root)]
        path = out / "models" / root
        if root.endswith("-trained"):
            path = family.trained
        elif not path.exists():
            train_new(family, int(root.rpartition("-")[2]), path)
        survey(path, out / "atlases" / root, family)
        for how in ways(root):
            name = named(root, how)
            if not (out / "models" / name).exists():
                DERIVED[how](path, out / "models" / name, family)
            survey(out / "models" / name, out / "atlases" / name, family)


def survey(model: Path, atlas: Path, family: Family) -> None:
    if not atlas.exists():
        networks = {"n_components": 32, "decomposer": {"name": "canica", "n_init": 2}}
        make_atlas(
            str(model), str(family.survey), atlas,
            parameters=networks, samples=64, window=128, text_column="page",
        )  # fmt: skip


def family_of(root: str) -> str:
    return root.partition("-")[0]


def ways(root: str) -> Sequence[str]:
    if root in SETS["references"]:
        return ()
    return OF_REAL if family_of(root) == "real" else list(DERIVED)


def pairs(known: Collection[str]) -> Iterable[dict[str, str]]:
    """List root, root of the other model, and how this was derived; "" is the root itself.

    `set` is "across" where one root was chosen on and the other not.
    """
    sets = {r: name for name, roots in SETS.items() for r in roots if family_of(r) in known}
    for root, other in product(sets, repeat=2):
        if family_of(root) == family_of(other):
            name = sets[root] if sets[root] == sets[other] else "across"
            derived = [*ways(other), *([""] if root < other else [])]  # two roots are one pair
            yield from ({"set": name, "root": root, "other": other, "how": how} for how in derived)


activity, courses = (cache(read) for read in (read_activity, read_courses))


def compare(first: Path, second: Path) -> dict[str, float]:
    mine, theirs = activity(first), activity(second)
    found = kinship(mine, theirs)
    whole = [courses(path) for path in (first, second)]
    shares = [share for _, share in found.blocks.values()]  # the first layer first
    return {
        "matched": matched(
            *({k: of[k].float() for k in mine.courses.keys() & of.keys()} for of in whole)
        ),
        "matched beyond tokens": matched(mine.courses, theirs.courses),
        "explained": found.similarity,
        "explained early": mean(shares[: -(-len(shares) // 4)]),
    }


def matched(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Assign the courses of each block to each other; gives the mean size of correlations."""
    found = []
    for block in mine.keys() & theirs.keys():
        both = (of[block] - of[block].mean(0) for of in (mine, theirs))
        x, y = (torch.nn.functional.normalize(part, dim=0) for part in both)
        likeness = (x.T @ y).abs().numpy()
        found.append(likeness[linear_sum_assignment(-likeness)].mean())
    return float(np.mean(found))


def related(row: dict) -> bool:
    return row["root"] == row["other"]


def auc(rows: Sequence[dict], statistic: str) -> float:
    yes = np.array([row[statistic] for row in rows if related(row)])[:, None]
    no = np.array([row[statistic] for row in rows if not related(row)])
    return float((yes > no).mean() + (yes == no).mean() / 2)


def interval(rows: Sequence[dict], statistic: str) -> tuple[float, float]:
    """Draw the roots of every family anew; 95 of 100 areas lie between these."""
    drawn = random.Random(0)
    roots: dict[str, list[str]] = {}
    for root in sorted({row["root"] for row in rows}):
        roots.setdefault(family_of(root), []).append(root)
    areas = []
    for _ in range(DRAWS):
        times = Counter(r for some in roots.values() for r in drawn.choices(some, k=len(some)))
        again = [
            row
            for row in rows
            for _ in range(times[row["root"]] * (1 if related(row) else times[row["other"]]))
        ]
        if not all(map(related, again)):  # the same root every time
            areas.append(auc(again, statistic))
    return float(np.quantile(areas, 0.025)), float(np.quantile(areas, 0.975))


def verdicts(rows: Sequence[dict], same_text: bool) -> dict[str, Counter]:
    """Count verdicts, by what is true; models of either root of a pair are not in its null.

    Args:
        same_text: the null is the first root beside all others with its tokenizer, as with
            `--unrelated`; otherwise all pairs of roots, as without.
    """
    counts = {"related": Counter(), "unrelated": Counter()}
    known = [({row["root"], row["other"]}, row["explained"]) for row in unrelated_roots(rows)]
    for row in rows:
        common = {row["root"]} if same_text else set()
        mine = {row["root"], row["other"]}
        null = [similarity for roots, similarity in known if roots & mine == common]
        if len(null) >= REFERENCES:
            said = verdict(row["explained"], null)
            counts["related" if related(row) else "unrelated"][said] += 1
    return counts


def unrelated_roots(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if not related(row) and not row["how"]]


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def report(everything: list[dict]) -> None:
    """Print tables in Markdown."""
    print("| statistic | chosen on | reported on | all | lowest related | highest unrelated |")
    print("|---|---|---|---|---|---|")
    rows = [row for row in everything if row["set"] != "real"]
    sets = [[row for row in rows if row["set"] == name] for name in ("chosen", "reported")]
    for statistic in STATISTICS:
        areas = []
        for some in (*sets, rows):
            low, high = interval(some, statistic)
            areas.append(f"{auc(some, statistic):.3f} ({low:.3f} to {high:.3f})")
        yes = min(row[statistic] for row in rows if related(row))
        no = max(row[statistic] for row in rows if not related(row))
        print(f"| {statistic} | {' | '.join(areas)} | {yes:.3f} | {no:.3f} |")
    kinds = sorted({(family_of(r["root"]), not related(r)) for r in everything})
    heads = [f"{family}, {'another' if other else 'its'} root" for family, other in kinds]
    print(f"\n| similarity | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for how in [*DERIVED, ""]:
        cells = []
        for kind in kinds:
            mine = [r for r in everything if (family_of(r["root"]), not related(r)) == kind]
            cells.append(spread([r["explained"] for r in mine if r["how"] == how]))
        print(f"| {how or 'as it is'} | {' | '.join(cells)} |")
    for same_text in (True, False):
        null = "models of the same text" if same_text else "pairs of all texts"
        print(f"\nverdicts by unrelated {null}: {json.dumps(verdicts(everything, same_text))}")
    print(f"MEASURED: {sorted(round(row['explained'], 3) for row in unrelated_roots(rows))}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path)
    add("--model", type=Path, help="LLaMA of the family words")
    add("--real", type=Path, help="published model")
    add("--out", type=Path)
    add("--report", action="store_true", help="of what was measured before")
    args = parser.parse_args()
    if not args.report:
        if not (args.data and args.model and args.out):
            parser.error("give --data, --model and --out, or --report.")
        known = families(args.data, args.model, args.real, args.out / "texts")
        roots = [root for some in SETS.values() for root in some if family_of(root) in known]
        make_models(roots, known, args.out)
        measured = []
        for pair in bar(list(pairs(known)), "comparing", "pair"):
            names = pair["root"], named(pair["other"], pair["how"])
            measured.append(pair | compare(*(args.out / "atlases" / name for name in names)))
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in measured))
    report([json.loads(line) for line in RESULTS.read_text().splitlines()])


if __name__ == "__main__":
    main()
