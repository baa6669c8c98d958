"""Skills after pruning: all methods on the model that comes with the package.

    python benchmarks/skills.py --out OUT [--method NAME ...] [--ratio R ...] [--seed S ...]

Calibrated on documents of the training split, 160 windows of 128 characters. Skills are lm-eval's
`acc` of 100 questions each (facts: 96) with four choices; "mean" is their unweighted mean in
percent, and "lost" what that is below the dense model's. Runs `funcnet compare`, so an interrupted
run goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from funcnet_plugin.demo.evaluate import TASK, write_tasks
from funcnet_plugin.demo.run import MODEL, OVERRIDES
from funcnet_plugin.demo.skills import documents

FUNCNET = str(Path(sys.executable).with_name("funcnet"))  # of this environment
METHODS = (
    "best", "networks", "deployable", "surgeon", "loss_effect", "taylor", "flap", "obs", "effect",
    "wanda_sp", "magnitude", "random", "random-or-surgeon", "shortgpt", "slicegpt",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", action="append")
    parser.add_argument("--ratio", action="append", type=float)
    parser.add_argument("--seed", action="append", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = {}
    for split in ("train", "test"):
        texts[split] = args.out / f"{split}.jsonl"
        rows = [json.dumps({"text": text}) for text in documents(320, seed=0, split=split)]
        texts[split].write_text("\n".join(rows) + "\n")
    folder = args.out / "tasks"
    folder.mkdir(exist_ok=True)
    skills = [name for name in write_tasks(folder, limit=100) if name != f"{TASK}_text"]
    command = [FUNCNET, "compare", str(MODEL), "--out", str(args.out), "--window", "128"]
    command += ["--data", str(texts["train"]), "--text", f"documents={texts['test']}", "--json"]
    command += ["--include-path", str(folder)]
    for flag, values in {
        "--task": skills,
        "--method": args.method or METHODS,
        "--ratio": args.ratio or (0.2, 0.3),
        "--seed": args.seed or (0,),
        "--set": [f"{field}={value}" for field, value in OVERRIDES.items()],
    }.items():
        for value in values:
            command += [flag, str(value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = json.loads(done.stdout)
    dense = 100 * mean(rows[0]["tasks"].values())
    print(f"dense: mean of {len(skills)} skills {dense:.1f}")
    for row in rows[1:]:
        if "refused" in row:
            continue
        score = 100 * mean(row["tasks"].values())
        print(
            f"{row['method']}, {row['ratio']:g} ({row['ratio_reached']:.3f}), seed {row['seed']}: "
            f"mean {score:.1f}, lost {dense - score:.1f}, perplexity {row['gm']:.3f}"
        )


if __name__ == "__main__":
    main()
