"""Skills after pruning: all methods on a model that has some.

    python benchmarks/skills.py demo --out OUT
    python benchmarks/skills.py grammar --out OUT --teacher DIR --pairs BLIMP --data wiki.jsonl \
        --text wiki=test.jsonl --text-column page [--calibrate text]

`demo`: the model that comes with the package, calibrated on documents of its training split, 160
windows of 128 characters. Skills are lm-eval's `acc` of 100 questions each (facts: 96) with four
choices.

`grammar`: BLiMP's minimal pairs (a directory of jsonl files, a paradigm each), where small models
trained on plain text are hardly better than chance. So the teacher's copy first learns the
grammatical sentences of every paradigm's first 500 pairs (`scripts/train_reference_models.py same`,
once, into OUT/model), never an ungrammatical one, and is asked about 200 of the others. Calibrated
on windows of 128 tokens: of --data, of the learnt sentences, or of both in equal parts.

"mean" is the unweighted mean over skills in percent, "lost" what that is below the dense model's.
Runs `funcnet compare`, so an interrupted run goes on; more arguments are those of its kind.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from comparing import run_compare

from funcnet_plugin.demo.evaluate import TASK, write_tasks
from funcnet_plugin.demo.run import MODEL, OVERRIDES
from funcnet_plugin.demo.skills import documents
from funcnet_plugin.tasks import write_local_tasks

TRAIN = Path(__file__).parents[1] / "scripts" / "train_reference_models.py"
METHODS = (
    "best", "default", "surgeon", "loss_effect", "taylor", "flap", "obs", "effect",
    "wanda_sp", "magnitude", "random", "random-or-best", "random-or-surgeon", "shortgpt",
    "slicegpt",
)  # fmt: skip
LEARNT, ASKED = 500, 200  # pairs of a paradigm


@dataclass(frozen=True)
class Subject:
    """Says what is compared on: a model, its skills' tasks, and the arguments of its kind."""

    model: Path
    out: Path
    folder: Path
    skills: list[str]
    arguments: list[str]
    fields: dict[str, object]


def demo(args: argparse.Namespace) -> Subject:
    texts = {}
    for split in ("train", "test"):
        texts[split] = args.out / f"{split}.jsonl"
        write_lines(texts[split], [{"text": t} for t in documents(320, seed=0, split=split)])
    folder = args.out / "tasks"
    folder.mkdir(exist_ok=True)
    skills = [name for name in write_tasks(folder, limit=100) if name != f"{TASK}_text"]
    arguments = ["--data", str(texts["train"]), "--text", f"documents={texts['test']}"]
    return Subject(MODEL, args.out, folder, skills, arguments, OVERRIDES)


def grammar(args: argparse.Namespace) -> Subject:
    paradigms = sorted(args.pairs.glob("*.jsonl"))
    if not paradigms:
        raise SystemExit(f"{args.pairs} holds no jsonl file with sentence pairs.")
    held_out = args.out / "pairs"
    held_out.mkdir(exist_ok=True)
    sentences, asked = [], []
    for path in paradigms:
        pairs = [json.loads(line) for line in path.read_text().splitlines()]
        sentences += [{args.text_column: pair["sentence_good"]} for pair in pairs[:LEARNT]]
        asked.append(held_out / path.name)
        write_lines(asked[-1], pairs[LEARNT : LEARNT + ASKED])
    random.Random(0).shuffle(sentences)  # no paradigm next to itself, as when it is asked
    learnt = args.out / "sentences.jsonl"
    write_lines(learnt, sentences)
    model = args.out / "model"
    if not (model / "TRAINING.md").exists():  # written last
        command = [sys.executable, str(TRAIN), "same", "--teacher", args.teacher]
        command += ["--text", str(learnt), "--text-column", args.text_column]
        command += ["--output", str(model), "--steps", str(args.steps), "--rate", "1e-3"]
        command += ["--written", "200000"]
        subprocess.run(command, check=True)
    tasks = args.out / "tasks"
    skills = write_local_tasks(tasks, {}, asked, args.text_column)
    arguments = ["--text-column", args.text_column, "--samples", str(args.samples)]
    if args.calibrate != "sentences":
        for source in args.data:
            arguments += ["--data", f"{source}:{1 / len(args.data)}"]
    if args.calibrate != "text":
        arguments += ["--data", f"{learnt}:1"]
    for text in args.text:
        arguments += ["--text", text]
    fields = {"align": 32, "scorer.networks.decomposer.n_init": 4}
    return Subject(model, args.out / args.calibrate, tasks, skills, arguments, fields)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def compare(subject: Subject, args: argparse.Namespace) -> list[dict]:
    arguments = ["--window", "128", "--include-path", str(subject.folder), *subject.arguments]
    return run_compare(
        subject.model,
        subject.out,
        args.out / "recipes",
        args.method or METHODS,
        subject.fields,
        arguments,
        task=subject.skills,
        ratio=args.ratio or (0.2, 0.3),
        seed=args.seed or (0,),
    )


def report(rows: list[dict]) -> None:
    """Print a line for every method and ratio, over its seeds."""
    dense = 100 * mean(rows[0]["tasks"].values())
    print(f"dense: mean of {len(rows[0]['tasks'])} skills {dense:.1f}")
    scores: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in rows[1:]:
        if "refused" not in row:
            score = (100 * mean(row["tasks"].values()), row["gm"])
            scores.setdefault((row["method"], row["ratio"]), []).append(score)
    for (method, ratio), seeds in scores.items():
        skill, gm = mean(s for s, _ in seeds), mean(g for _, g in seeds)
        spread = f" ± {stdev(s for s, _ in seeds):.1f}" if len(seeds) > 1 else ""
        print(
            f"{method}, {ratio:g}, {len(seeds)} seeds: mean {skill:.1f}{spread}, "
            f"lost {dense - skill:.1f}, perplexity {gm:.3f} of dense"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    with_demo, with_pairs = kinds.add_parser("demo"), kinds.add_parser("grammar")
    for sub, prepare in ((with_demo, demo), (with_pairs, grammar)):
        sub.set_defaults(prepare=prepare)
        sub.add_argument("--out", type=Path, required=True)
        sub.add_argument("--method", action="append")
        sub.add_argument("--ratio", action="append", type=float)
        sub.add_argument("--seed", action="append", type=int)
    add = with_pairs.add_argument
    add("--teacher", required=True, help="checkpoint with its tokenizer")
    add("--pairs", type=Path, required=True, help="directory of BLiMP's jsonl files")
    add("--data", action="append", required=True, help="calibration text; several share equally")
    add("--text", action="append", required=True, metavar="NAME=FILE")
    add("--text-column", default="text")
    add("--calibrate", choices=["text", "sentences", "both"], default="both")
    add("--samples", type=int, default=320, help="calibration windows")
    add("--steps", type=int, default=300, help="of 16 x 128 tokens, of the copy")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    report(compare(args.prepare(args), args))


if __name__ == "__main__":
    main()
