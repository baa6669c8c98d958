"""How fast a model is at several widths, in several runtimes: rows of results/speed.jsonl.

    python benchmarks/speed.py MODEL --out DIR [--backend B] [--lengths 128/128] [--step 256] ...

Time does not depend on what weights hold, so the pruned models are MODEL's shape with random ones:
for each ratio and step one uniform width, the nearest to the ratio that is a multiple of the step
and of no coarser step. DIR keeps them and what is done; an interrupted run goes on. Quantized GGUF
holds multiples of 32 only, so step 1 is left out there. `--table` prints the rows that are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_rows import RESULTS, replace_rows

from funcnet_plugin.adapters import bind, count_parameters
from funcnet_plugin.bench import Bench, bench, parse_load
from funcnet_plugin.bench.models import model_on_meta
from funcnet_plugin.bench.twins import write_random

ROWS = RESULTS / "speed.jsonl"
RATIOS, STEPS = (0.1, 0.2, 0.3), (256, 128, 32, 1)
BACKENDS = ("transformers", "llama.cpp:f32", "llama.cpp:q8_0", "llama.cpp:q4_0")
KEPT = ("model", "load", "repetitions", "time_to_first_token", "time_per_token", "removed",
        "speed_up", "peak_memory_bytes", "weight_bytes", "disk_bytes")  # fmt: skip


def width_of(wanted: float, step: int, widest: int) -> int:
    """Find the nearest multiple of a step that is of no coarser one."""
    coarser = next((s for s in reversed(STEPS) if s > step), None)
    fit = [w for w in range(step, widest, step) if coarser is None or w % coarser]
    return min(fit, key=lambda width: abs(width - wanted))


def pruned_models(
    model: Path, ratios: Sequence[float], steps: Sequence[int], out: Path
) -> dict[Path, tuple[float, int]]:
    """Write the models that are not there yet, and name all: directory -> (ratio, step)."""
    shapes = model_on_meta(model)
    layout = bind(shapes, try_mlps=False)
    per_width = sum(block.parameters_per_piece for block in layout.blocks)
    widest, total = max(layout.widths), count_parameters(shapes)
    found = {}
    for ratio in ratios:
        for step in steps:
            width = width_of(widest - ratio * total / per_width, step, widest)
            path = out / f"width-{width}"
            if not path.exists():
                write_random(model, [width] * len(layout.blocks), path)
            found[path] = (ratio, step)
    return found


def _fits(backend: str, step: int) -> bool:
    return step % 32 == 0 or not backend.endswith(("q8_0", "q4_0"))


def rows_of(comparison: str) -> list[dict[str, Any]]:
    """Read what was measured of one model's shape."""
    rows = map(json.loads, ROWS.read_text().splitlines())
    return [row for row in rows if row["comparison"] == comparison]


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Show the rows of one model as Markdown, those of each number of tokens by themselves."""
    lengths = dict.fromkeys(row["lengths"] for row in rows)
    return "\n\n".join(_table([row for row in rows if row["lengths"] == of]) for of in lengths)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    tokens = rows[0]["lengths"].replace("/", " read, ") + " written"
    heads = (tokens, "width", "removed", "first token", "per token", "of weights")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    dense = {row["backend"]: row["weight_bytes"] for row in rows if row["speed_up"] is None}
    for row in rows:
        if row["speed_up"] is None:
            continue
        gains = [_gain(row, phase) for phase in ("prefill", "decode")]
        removed = f"{row['removed']['prefill']:.1%}, {row['removed']['decode']:.1%}"
        saved = 1 - row["weight_bytes"] / dense[row["backend"]]
        cells = (row["backend"], row["width"], removed, *gains, f"-{saved:.1%}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _gain(row: dict[str, Any], phase: str) -> str:
    gain = row["speed_up"][phase]
    between = "" if gain["low"] is None else f" ({gain['low']:.2f} to {gain['high']:.2f})"
    return f"{gain['ideal']:.2f}: {gain['measured']:.2f}{between}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--lengths", default="128/128")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--step", type=int, action="append", choices=STEPS)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    args = parser.parse_args()
    about = {"comparison": args.model.resolve().name}
    if not args.table:
        if args.out is None:
            parser.error("--out is needed, a directory for models and what is done.")
        (args.out / "models").mkdir(parents=True, exist_ok=True)
        models = pruned_models(
            args.model, args.ratio or RATIOS, args.step or STEPS, args.out / "models"
        )
        for backend in args.backend or BACKENDS:
            pruned = [path for path, (_, step) in models.items() if _fits(backend, step)]
            plan = Bench(
                models=[args.model, *pruned],
                backends=[backend],
                loads=[parse_load(args.lengths)], repetitions=args.repetitions,
                aligned=(1,), dtype="float32", threads=args.threads,
            )  # fmt: skip
            found = bench(plan, args.out / backend)
            widths = {one["name"]: one["widths"][0] for one in found["models"]}
            rows = [
                {"width": widths[row["model"]], "machine": found["machine"]}
                | {key: row[key] for key in KEPT}
                for row in found["rows"]
            ]
            replace_rows(ROWS, rows, **about, backend=backend, lengths=args.lengths)
    print(tables(rows_of(about["comparison"])))


if __name__ == "__main__":
    main()
