"""The tables of docs/real-models.md, from the rows that benchmarks/real.py measured.

    python benchmarks/real_tables.py

tests/test_documents.py checks that the page is what the rows give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "real.jsonl"
PAGE = ROOT / "docs" / "real-models.md"
Row = dict[str, Any]

INTRODUCTION = """# Real models after pruning

Written by `benchmarks/real_tables.py` from `benchmarks/results/real.jsonl`, which
`benchmarks/real.py` measured. The models are bfloat16 copies of published 4-bit files, so each is
compared with itself before pruning and with nothing else.

Perplexity is per token, relative to the dense model's, in windows as long as those that
calibrate, 8192 tokens of each text; gm is the geometric mean over the four texts. Tasks are
zero-shot, in lm-eval's wording: accuracy, and accuracy by likelihood per character for
HellaSwag, ARC challenge and OpenBookQA. "lost" is the mean of the tasks below the dense
model's, in points, ± the standard error of one model's mean; "above chance" counts only what
stands above guessing, for the dense model is below it in some tasks. Percent are of all
parameters. `flap`, `shortgpt` and `slicegpt` are run as published, other peers with the linear
repair of `fast`; `-own-text` after a name means that it has the text and the repair of `best`, and
`random-or-` before it that random numbers stand in the place of functional networks. Seconds with
windows of 256 tokens are of one thread, beside another run on a machine of two cores; "-" where
more ran. With windows of 512 they are of two threads with nothing beside; `best` ran on another
machine, where FLAP took 217 s. Most parameters of Gemma 3 270M are embeddings: 10% of all are 38%
of the neurons of its MLPs, 20% are three quarters, and 30% are more than all. FLAP as published
cannot be saved for it, for its down projections have no bias.
"""
# What guessing gives; LAMBADA's answers are open.
CHANCE = {
    "piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5, "arc_easy": 0.25, "arc_challenge": 0.25,
    "openbookqa": 0.25, "boolq": 0.5, "lambada": 0.0,
}  # fmt: skip
COSTS = ("seconds", "peak_mb", "tokens_per_second")
NETWORKS, RANDOM = "default", "random-or-default"


def page(rows: Sequence[Row]) -> str:
    """Write the page."""
    parts = [INTRODUCTION]
    for about in _distinct((row["model"], row["text"], row["window"]) for row in rows):
        model, text, window = about
        same = [row for row in rows if (row["model"], row["text"], row["window"]) == about]
        parts.append(f"## {model}, calibrated on {text}, windows of {window} tokens\n")
        dense = next(row for row in same if row["method"] == "dense")
        parts += ["Text:\n", _texts(same, dense)]
        if dense["tasks"]:
            limit, scored = dense["limit"], [row for row in same if row.get("tasks")]
            parts += [
                f"Tasks, the first {limit} questions of each:\n", _tasks(scored, dense, limit)
            ]  # fmt: skip
        if against := _against_random(same):
            parts += [AGAINST, against]
        parts += ["What it took:\n", _cost(same)]
    return "\n".join(parts)


AGAINST = """Functional networks against random numbers in their place, all else alike: perplexity
relative to that of the random ones, geometric mean over the seeds, and where 95% of such means lie
(Student's t, of logarithms):
"""


def _against_random(rows: Sequence[Row]) -> str:
    """Compare the recipe with its control, seed by seed; nothing with fewer than two seeds."""
    by_key = {(r["method"], r["ratio"], r["seed"]): r for r in _pruned(rows)}
    lines = []
    for ratio in sorted({ratio for _, ratio, _ in by_key}):
        seeds = sorted(s for m, r, s in by_key if m == NETWORKS and r == ratio)
        pairs = [
            (by_key[NETWORKS, ratio, s], by_key[RANDOM, ratio, s])
            for s in seeds
            if (RANDOM, ratio, s) in by_key
        ]
        if len(pairs) < 2:
            continue
        cells = []
        for key in ("gm", *pairs[0][0]["perplexity"]):
            logs = [math.log(_figure(a, key) / _figure(b, key)) for a, b in pairs]
            width = float(stats.t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
            low, high = (math.exp(mean(logs) + sign * width) for sign in (-1, 1))
            cells.append(f"{math.exp(mean(logs)):.3f} ({low:.2f} to {high:.2f})")
        lines.append([f"{100 * ratio:.0f}%", str(len(pairs)), *cells])
    if not lines:
        return ""
    texts = list(_pruned(rows)[0]["perplexity"])
    return _table(["ratio", "seeds", "gm", *texts], lines)


def _short(number: float) -> str:
    """Write three significant digits."""
    return f"{number:#.3g}".rstrip(".")


def _figure(row: Row, key: str) -> float:
    return row["gm"] if key == "gm" else row["perplexity"][key]


def _texts(rows: Sequence[Row], dense: Row) -> str:
    texts = list(dense["perplexity"])
    lines = [["dense", "-", "1", *(_short(dense["perplexity"][t]) for t in texts)]]
    for row in _pruned(rows):
        relative = [row["perplexity"][t] / dense["perplexity"][t] for t in texts]
        lines.append([*_name(row), _short(row["gm"]), *map(_short, relative)])
    return _table(["method", "cut", "gm", *texts], lines)


def _tasks(rows: Sequence[Row], dense: Row, limit: int) -> str:
    tasks = list(dense["tasks"])
    lines = []
    for row in [dense, *_pruned(rows)]:
        scores = [row["tasks"][task] for task in tasks]
        error = math.sqrt(sum(p * (1 - p) / limit for p in scores)) / len(scores)
        lost = f"{100 * (mean(dense['tasks'].values()) - mean(scores)):.1f} ± {100 * error:.1f}"
        over = f"{100 * (_above_chance(dense) - _above_chance(row)):.1f}"
        shown = [f"{100 * score:.1f}" for score in [*scores, mean(scores)]]
        lines.append([*_name(row), *shown, *(["-", "-"] if row is dense else [lost, over])])
    names = [task.removeprefix("real_") for task in tasks]
    return _table(["method", "cut", *names, "mean", "lost", "above chance"], lines)


def _above_chance(row: Row) -> float:
    """Average over tasks what stands above guessing."""
    return mean(
        max(score - CHANCE[task.removeprefix("real_")], 0.0) for task, score in row["tasks"].items()
    )


def _cost(rows: Sequence[Row]) -> str:
    lines = [
        [
            *_name(row),
            f"{row['parameters'] / 1e6:.1f}M",
            *(f"{row[key]:.0f}" if key in row else "-" for key in COSTS),
        ]
        for row in rows
        if "parameters" in row
    ]
    return _table(["method", "cut", "parameters", "seconds", "peak MB", "tokens/s after"], lines)


def _pruned(rows: Iterable[Row]) -> list[Row]:
    """Sort the rows of pruned models by ratio, the best text first."""
    found = [row for row in rows if "ratio_reached" in row]
    return sorted(found, key=lambda row: (row["ratio"], row["gm"]))


def _name(row: Row) -> list[str]:
    if "ratio_reached" not in row:
        return [row["method"], "-"]
    seed = f", seed {row['seed']}" if row["seed"] else ""
    return [f"`{row['method']}`{seed}", f"{100 * row['ratio_reached']:.1f}%"]


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _table(header: list[str], lines: Iterable[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    PAGE.write_text(page([json.loads(line) for line in ROWS.read_text().splitlines()]))


if __name__ == "__main__":
    main()
