"""`funcnet bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from funcnet_plugin.cli.arguments import (
    AsJson,
    TestWindow,
    TestWindows,
    TextColumn,
    pairs_of,
    stdout_for_json,
)
from funcnet_plugin.errors import FuncnetError


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="DENSE PRUNED...",
            help="Directories of checkpoints, or of what funcnet export wrote as gguf or onnx; "
            "all others are compared with the first.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the results; an old one goes on.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="transformers, transformers:compiled, llama.cpp (a checkpoint as llama.cpp:q8_0, "
            ":f16 and so on), vllm, vllm:eager, onnxruntime; may be repeated."
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens read and written, PROMPT/WRITTEN; 128/128, 1000/200 and 2048/2048 if not "
            "given, those that the models have positions for; may be repeated."
        ),
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Texts at once (1); may be repeated.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Of each model and length.")] = 30,
    warm_up: Annotated[int, typer.Option(min=1, help="Repetitions before, not counted.")] = 2,
    aligned: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Where widths are no multiples of this (128), time a twin too, with random "
            "weights and the widths rounded up; may be repeated, 1 for none.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, perplexity to set beside the speed; may be repeated."),
    ] = None,
    text_column: TextColumn = "text",
    window: TestWindow = 512,
    windows: TestWindows = 16,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of transformers and vLLM: float32, bfloat16, float16, or auto for the "
            "checkpoint's."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; as many as torch takes if not given.")
    ] = None,
    vllm: Annotated[
        str | None, typer.Option(help="The command vllm, if it is not on the PATH.")
    ] = None,
    widths: Annotated[
        bool,
        typer.Option(
            "--widths",
            help="Time an MLP of the one MODEL at many widths instead, and write widths.json, "
            "which align in a recipe takes.",
        ),
    ] = False,
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="At once, for --widths: 1 and 512; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time models in turns: first token, each token, tokens per second, memory, size.

    Writes bench.json, bench.md and bench.png, and rows.jsonl round by round, so an interrupted
    bench goes on. Says how much of the speed the removed operations explain, and what widths cost
    that do not suit the kernels.

    Example: `funcnet bench ./llama ./llama-20 --backend transformers --backend llama.cpp:q8_0
    --lengths 128/128 --text wiki=test.jsonl --out ./speed`

    Widths: `funcnet bench ./llama --widths --out ./speed`, then `funcnet prune ... --set
    align=./speed/widths.json`
    """
    import torch

    threads = threads or torch.get_num_threads()
    if widths:
        _widths(models, out, tokens or [1, 512], repetitions, dtype, threads, as_json)
        return
    if tokens:
        raise FuncnetError("--tokens is for --widths; give --lengths.")

    from funcnet_plugin.bench import Bench, parse_load, write_results
    from funcnet_plugin.bench import bench as run
    from funcnet_plugin.bench.table import markdown

    plan = Bench(
        models=models,
        backends=backend or (),
        loads=[parse_load(given) for given in lengths or ()],
        concurrency=concurrency or (1,),
        repetitions=repetitions,
        warm_up=warm_up,
        aligned=aligned or (128,),
        texts=pairs_of(text or [], "--text"),
        text_column=text_column,
        window=window,
        windows=windows,
        dtype=dtype,
        threads=threads,
        vllm=vllm,
    )
    with stdout_for_json(as_json):
        found = run(plan, out)
        write_results(found, out)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        Console(soft_wrap=True, highlight=False, markup=False).print(markdown(found))


def _widths(
    models: list[Path],
    out: Path,
    tokens: list[int],
    repetitions: int,
    dtype: str,
    threads: int,
    as_json: bool,
) -> None:
    """Time widths and say which are fast."""
    from funcnet_plugin.bench.widths import bench_widths, write_widths
    from funcnet_plugin.output import check_directory
    from funcnet_plugin.screen import table

    if len(models) != 1:
        raise FuncnetError(f"--widths is of one MODEL, and {len(models)} are given.")
    check_directory(out)
    with stdout_for_json(as_json):
        found = bench_widths(models[0], tokens, repetitions, dtype, threads)
        path = write_widths(found, out)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    heads = ["multiples of", *(f"{n} at once" for n in tokens), ""]
    rows = [
        [step, *(f"{costs[str(n)]:.3f}" for n in tokens), ""]
        for step, costs in found["steps"].items()
    ]
    Console(soft_wrap=True, highlight=False, markup=False).print(
        f"{table(heads, rows)}\ntime relative to widths that are multiples of 256; "
        f"fast on this device: align: {found['align']} ({path})"
    )
