"""The commands that do one thing with one model. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from funcnet_plugin.cli.arguments import (
    AsJson,
    Calibration,
    pairs_of,
    recipe_fields,
    stdout_for_json,
)
from funcnet_plugin.cli.listing import list_adapters, list_parts
from funcnet_plugin.cli.memory import memory_of, show_memory
from funcnet_plugin.errors import FuncnetError
from funcnet_plugin.recipe import packaged_recipes
from funcnet_plugin.screen import span

if TYPE_CHECKING:
    from funcnet_plugin.inspection import ModelShape


def demo(
    out: Annotated[Path, typer.Option(help="Directory for checkpoint, plots and page.")] = Path(
        "demo-output"
    ),
    ratio: Annotated[float, typer.Option(help="Share of all parameters to remove.")] = 0.5,
    recipe: Annotated[Path | None, typer.Option(help="Recipe instead of the demo's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prune the small model that comes with the package and show what it lost.

    Compares with a random choice, and shows which networks carry which skill. Needs no network and
    no data, and takes less than four minutes on two cores.

    Example: `funcnet demo --ratio 0.2 --out /tmp/demo`
    """
    from funcnet_plugin.demo.run import run_demo

    with stdout_for_json(as_json):
        console = Console(stderr=as_json)
        results = run_demo(out, ratio=ratio, recipe=recipe, console=console)
    if as_json:
        print(json.dumps(results, indent=2))


def inspect(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory or hub name.", show_default=False)
    ] = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Ratio to plan; may be repeated.")
    ] = None,
    align: Annotated[int, typer.Option(help="Kept widths are multiples of this.")] = 128,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="List the adapters that are installed instead.")
    ] = False,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="List scorers, repairs, decomposers, and their parameters."),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe file or name: show what its stages need in memory."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows, for --recipe.")] = 160,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window, for --recipe.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Show adapter, layers, widths, parameters, and what a ratio would give. Loads no weights.

    Example: `funcnet inspect meta-llama/Llama-3.2-1B --ratio 0.2 --ratio 0.3`

    Memory: `funcnet inspect meta-llama/Llama-2-7b --recipe ica_prune --samples 512 --length 2048`
    """
    if adapters:
        list_adapters(as_json)
        return
    if parts:
        list_parts(as_json)
        return
    if model is None:
        raise FuncnetError("name a MODEL to inspect, or ask for --adapters or --parts.")
    from funcnet_plugin.inspection import inspect_model

    with stdout_for_json(as_json):
        shape = inspect_model(model, tuple(ratio or (0.1, 0.2, 0.3)), align)
        found = None if recipe is None else memory_of(model, recipe, samples, length)
    if as_json:
        print(json.dumps(asdict(shape) | ({} if found is None else {"memory": found}), indent=2))
        return
    console = Console()
    console.print(f"[bold]{shape.source}[/]: {shape.architecture}, adapter {shape.adapter}")
    widths = sorted(set(shape.widths))
    console.print(
        f"{len(shape.widths)} layers of width {', '.join(map(str, widths))}; "
        f"{shape.parameters:,} parameters, {shape.mlp_parameters / shape.parameters:.1%} in MLPs"
    )
    console.print(_heads(shape))
    table = Table("ratio asked", "kept width", "ratio reached", "parameters left")
    for reach in shape.reaches:
        if reach.kept_width is None:
            table.add_row(f"{reach.ratio:g}", "-", "-", reach.reason)
        else:
            table.add_row(
                f"{reach.ratio:g}",
                str(reach.kept_width),
                f"{reach.reached:.4f}",
                f"{reach.parameters:,}" + (f" ({reach.reason})" if reach.reason else ""),
            )
    console.print(table)
    if found is not None:
        show_memory(found)


def _heads(shape: ModelShape) -> str:
    """Say what `heads_ratio` can cut."""
    heads = shape.heads
    if heads.key_value_heads is None:
        return heads.reason.removesuffix("; leave heads_ratio out.") + "."
    return (
        f"{heads.key_value_heads} key-value heads with {heads.queries} query heads each in every "
        f"layer, {heads.parameters / shape.parameters:.1%} of the parameters with one of them; "
        f"heads_ratio can leave {', '.join(map(str, heads.possible))}"
    )


def prune(
    model: Annotated[str, typer.Argument(help="Checkpoint directory or hub name.")],
    data: Calibration,
    out: Annotated[Path, typer.Option(help="New directory for the pruned model.")],
    ratio: Annotated[float | None, typer.Option(help="Share of all parameters to remove.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help=f"Recipe file, or one of {', '.join(packaged_recipes())}; ica_prune if not given."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Recipe field, or parameter of a part, FIELD=VALUE: align=64, repair.epochs=2, "
            "scorer.networks.n_components=64; may be repeated.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 160,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per forward pass; chosen if not given.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Field of a record with the text.")] = "text",
    export_: Annotated[
        str | None,
        typer.Option("--export", help="Another form, see funcnet export --help."),
    ] = None,
    from_atlas: Annotated[
        Path | None,
        typer.Option(help="Atlas of the model: its networks are taken, and not found again."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model and save it; stock transformers loads it if all layers keep one width.

    Example: `funcnet prune ./llama --data wiki.jsonl --ratio 0.2 --out ./llama-20 --set align=64`
    """
    from funcnet_plugin.pruning import prune as run
    from funcnet_plugin.text.sources import parse_sources

    with stdout_for_json(as_json):
        block = run(
            model,
            parse_sources(data),
            out,
            ratio=ratio,
            recipe=recipe,
            overrides=recipe_fields(set_ or []),
            samples=samples,
            window=window,
            batch_size=batch_size,
            text_column=text_column,
            export=export_,
            from_atlas=from_atlas,
        )
    if as_json:
        print(json.dumps(block, indent=2))
        return
    Console(soft_wrap=True).print(
        f"[bold]{out}[/]: {block['parameters_before']:,} -> {block['parameters_after']:,} "
        f"parameters, {block['pruning_ratio_reached']:.4f} removed "
        f"(asked: {block['pruning_ratio_requested']:g}), {_left(block)}"
    )


def _left(block: dict[str, Any]) -> str:
    """Say what a modifier left: neurons, layers or axes of the hidden states."""
    names = {"kept_widths": "widths", "kept_layers": "layers", "hidden_size": "hidden size",
             "kept_key_value_heads": "key-value heads"}  # fmt: skip
    found = {name: block[key] for key, name in names.items() if key in block}
    if "widths" in found:
        found["widths"] = span(found["widths"])
    return ", ".join(f"{name} {left}" for name, left in found.items())


def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, not quantized.")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="padded: layers filled up to one width, stock, nothing saved; remote-code: "
            "per-layer widths with their modelling code; nemotron-nas: the same for vLLM, SGLang, "
            "TensorRT-LLM and MLX-LM, widths in multiples of 256; gguf: model.gguf for llama.cpp, "
            "gguf:f16 or :q8_0, :q4_0, :bf16, :f32; onnx: model.onnx, float32; glm: a ChatGLM "
            "under the names of transformers' own glm.",
        ),
    ] = "padded",
    onnx: Annotated[bool, typer.Option("--onnx", help="Short for --format onnx.")] = False,
) -> None:
    """Write a pruned checkpoint in a form that works without this package.

    Example: `funcnet export ./llama-20 --format gguf:q8_0 --out ./llama-20-gguf`
    """
    from funcnet_plugin.export import export_model

    export_model(model, out, "onnx" if onnx else form)
    Console(soft_wrap=True).print(f"[bold]{out}[/]")


def tasks(
    out: Annotated[Path | None, typer.Option(help="Directory for the tasks to write.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, a perplexity task; may be repeated.")
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="BLiMP jsonl, or a directory of them; may be repeated."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Field of a record with the text.")] = "text",
) -> None:
    """Make lm-eval tasks from local files, or print where the paper's tasks are.

    Example: `funcnet tasks --out ./tasks --text wiki=test.jsonl --pairs ./blimp`, then
    `lm_eval --model funcnet --include_path ./tasks --tasks wiki ...`
    """
    from funcnet_plugin.tasks import FOLDER, write_local_tasks

    if out is None:
        if text or pairs:
            raise FuncnetError("--text and --pairs need --out, a directory for the tasks.")
        print(FOLDER)
        return
    if not text and not pairs:
        raise FuncnetError("--out needs something to make tasks of: --text NAME=FILE or --pairs.")
    for folder in pairs or []:
        if folder.is_dir() and not any(folder.glob("*.jsonl")):
            raise FuncnetError(f"{folder} holds no .jsonl file; give the directory of the pairs.")
    files = [f for p in pairs or [] for f in (sorted(p.glob("*.jsonl")) if p.is_dir() else [p])]
    named = {name: Path(path) for name, path in pairs_of(text or [], "--text").items()}
    print(",".join(write_local_tasks(out, named, files, text_column)))
