"""`funcnet export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
