"""What repair and own text cost: wall time and peak memory of whole runs, as ratios.

    python benchmarks/repair_cost.py MODEL --data CALIBRATION.jsonl

Every run is `funcnet prune` in a process of its own with `prune_best`, without own text or
continuations unless the label says so; the kinds take turns, `--rounds` times, and the ratios are
those of medians to the run with `least_squares`. The peak is that of the process's resident memory.
Scores are measured alike in all of them. One table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from funcnet_plugin.recipe import recipe_path

FUNCNET = str(Path(sys.executable).with_name("funcnet"))  # of this environment
PLAIN = {"own_text": 0.0}  # unless a kind says otherwise
LEAST_SQUARES = {"repair": "least_squares"}
RECONSTRUCTION = {"repair": "reconstruction"}  # without continuations
DISTILLATION = {"repair": "distillation"}
OWN_TEXT, CONTINUATIONS = {"own_text": 0.25}, {"repair.continuations": 3}
KINDS = {  # label -> fields; the first is what the others are measured by
    "least_squares": LEAST_SQUARES,
    "reconstruction, 0 epochs": RECONSTRUCTION | {"repair.epochs": 0},
    "reconstruction": RECONSTRUCTION,
    "reconstruction, 3 continuations": RECONSTRUCTION | CONTINUATIONS,
    "reconstruction, 3 continuations, 2 epochs": RECONSTRUCTION
    | CONTINUATIONS
    | {"repair.epochs": 2},
    "distillation": DISTILLATION,
    "distillation, 2 epochs": DISTILLATION | {"repair.epochs": 2},
    "distillation, 3 continuations": DISTILLATION | CONTINUATIONS,
    "least_squares, own text": LEAST_SQUARES | OWN_TEXT,
    "distillation, own text": DISTILLATION | OWN_TEXT,
    "reconstruction, own text": RECONSTRUCTION | OWN_TEXT,
    "reconstruction, own text, 3 continuations": RECONSTRUCTION | OWN_TEXT | CONTINUATIONS,
}


def timed(command: list[str]) -> tuple[float, float]:
    """Measure wall seconds and peak MB of a process."""
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by itself to see why.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--column", default="text")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--align", type=int, default=32)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), help="besides the first; default: all"
    )
    args = parser.parse_args()
    command = [FUNCNET, "prune", args.model, "--data", args.data, "--text-column", args.column]
    command += ["--recipe", str(recipe_path("prune_best")), "--ratio", str(args.ratio)]
    command += ["--samples", str(args.samples), "--window", str(args.window)]
    command += ["--set", f"align={args.align}"]
    first = next(iter(KINDS))
    kinds = [kind for kind in KINDS if not args.kind or kind in (first, *args.kind)]
    runs = defaultdict(list)
    for _ in range(args.rounds):
        for kind in kinds:
            fields = []
            for name, value in (PLAIN | KINDS[kind]).items():
                fields += ["--set", f"{name}={value}"]
            with tempfile.TemporaryDirectory() as folder:
                runs[kind].append(timed([*command, *fields, "--out", f"{folder}/out"]))
    seconds, peaks = (
        {kind: statistics.median(run[i] for run in found) for kind, found in runs.items()}
        for i in (0, 1)
    )
    print(f"`{first}`: {seconds[first]:.0f} s, {peaks[first]:.0f} MB\n")
    print("| | time | peak memory |\n|---|---|---|")
    for kind in kinds:
        time_, peak = seconds[kind] / seconds[first], peaks[kind] / peaks[first]
        print(f"| {kind} | {time_:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
