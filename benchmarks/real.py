"""Real models after pruning: all methods, text, the field's tasks, what it costs.

    python benchmarks/real.py --data DIR --model smollm2-135m=MODEL --out OUT [--text c4|wiki]

DIR holds `text/c4.jsonl`, `wikitext-2/{valid,test_a}.jsonl`,
`domains/{shakespeare,speeches}.jsonl`, records with the text in "page", and `tasks/*.jsonl`, see
real_tasks.py. The first documents of C4 are measured on and the others calibrate. FLAP, ShortGPT
and SliceGPT are run as published, other peers with the linear repair, and four with the text and
the repair of `best` too. Runs `funcnet compare`, so an interrupted run goes on. Rows go to
benchmarks/results/real.jsonl, from which real_tables.py makes a page.

Tasks are scored on the first `--limit` questions of each. The seconds of a row are of value only
where nothing else ran.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from comparing import run_compare
from real_tasks import write_real_tasks
from result_rows import RESULTS, replace_rows

TEST_DOCUMENTS = 150  # of C4
TEST_TOKENS = 2**13  # of each text
TEXTS = (
    "text/c4.jsonl", "wikitext-2/valid.jsonl", "wikitext-2/test_a.jsonl",
    "domains/shakespeare.jsonl", "domains/speeches.jsonl",
)  # fmt: skip
METHODS = (
    "best", "default", "fast", "paper", "surgeon", "flap", "wanda_sp", "taylor", "obs", "random",
    "flap-own-text", "wanda_sp-own-text", "taylor-own-text", "obs-own-text", "random-or-default",
    "shortgpt", "slicegpt",
)  # fmt: skip


def split_c4(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write the documents that are measured on, and those that calibrate."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (data / "text" / "c4.jsonl").read_text().splitlines(keepends=True)
    parts = {"c4-test": lines[:TEST_DOCUMENTS], "c4-calibrate": lines[TEST_DOCUMENTS:]}
    files = {name: folder / f"{name}.jsonl" for name in parts}
    for name, part in parts.items():
        files[name].write_text("".join(part))
    return files["c4-test"], files["c4-calibrate"]


def keep(measured: Path, rows: list[dict], **about: str | int) -> None:
    """Put the rows of a comparison into the results, each in place of the one that was there.

    Args:
        measured: rows.jsonl, which also knows the versions.
        rows: of this comparison; the file may hold others.
        about: what else they were measured with.
    """
    entries = {e["mark"]: e for e in map(json.loads, measured.read_text().splitlines())}
    mine = [
        entry["row"] | {"versions": entry["versions"]}
        for entry in entries.values()
        if entry["row"] in rows
    ]
    for row in mine:
        which = {key: row[key] for key in ("method", "ratio", "seed") if key in row}
        replace_rows(RESULTS / "real.jsonl", [row], **about, **which)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--model", action="append", required=True, metavar="NAME=DIR")
    add("--out", type=Path, required=True)
    add("--text", choices=["c4", "wiki"], action="append", help="that calibrates; c4 if not given")
    add("--method", action="append")
    add("--ratio", action="append", type=float)
    add("--seed", action="append", type=int)
    add("--samples", type=int, default=128)
    add("--window", type=int, default=512, help="tokens of a window, of both kinds")
    add("--limit", type=int, default=200, help="questions of each task; 0 leaves tasks out")
    args = parser.parse_args()
    needed = [args.data / name for name in TEXTS] + ([args.data / "tasks"] if args.limit else [])
    missing = [str(path) for path in needed if not path.exists()]
    missing += [m for m in args.model if not Path(m.partition("=")[2]).is_dir()]
    if missing:
        parser.error(f"there is no {', '.join(missing)}; see what DIR holds at the top of --help.")
    c4_test, c4 = split_c4(args.data, args.out / "texts")
    calibration = {"c4": c4, "wiki": args.data / "wikitext-2" / "valid.jsonl"}
    test = {"c4": c4_test, "wiki": args.data / "wikitext-2" / "test_a.jsonl"}
    test |= {name: args.data / "domains" / f"{name}.jsonl" for name in ("shakespeare", "speeches")}
    folder = args.out / "tasks"
    tasks = write_real_tasks(args.data / "tasks", folder) if args.limit else []
    for model in args.model:
        name, _, path = model.partition("=")
        for text in args.text or ("c4",):
            out = args.out / f"{name}-{text}"
            arguments = ["--text-column", "page", "--window", str(args.window)]
            arguments += ["--windows", str(TEST_TOKENS // args.window)]
            arguments += ["--samples", str(args.samples), "--data", str(calibration[text])]
            if tasks:
                arguments += ["--include-path", str(folder), "--limit", str(args.limit)]
            rows = run_compare(
                path,
                out,
                args.out / "recipes",
                args.method or METHODS,
                {},
                arguments,
                text=[f"{name}={file}" for name, file in test.items()],
                task=tasks,
                ratio=args.ratio or (0.1, 0.2, 0.3),
                seed=args.seed or (0,),
            )
            about = {"model": name, "text": text, "window": args.window, "limit": args.limit}
            keep(out / "rows.jsonl", rows, **about)


if __name__ == "__main__":
    main()
