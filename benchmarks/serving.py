"""Whether a runtime computes what transformers does: log-probabilities of text and greedy text.

    python benchmarks/serving.py --checkpoint dense=DIR --checkpoint layers=DIR --text FILE \
        [--text-column page] [--windows 64] [--llama-cpp f32] [--vllm PYTHON] [--export FORMAT]

A window is 128 tokens; 32 tokens are written behind each. All is computed in float32 (a quantized
checkpoint as it is quantized), on the CPU; vLLM computes in bfloat16 with `--dtype bfloat16`, which
its int4 asks for. llama.cpp reads the export `gguf:VARIANT`, once with its cache of keys and values
in float32 and once in float16, as it does by default. PYTHON is of an environment with vLLM; a
checkpoint is given to it as it is, or as the exports named by `--export`. Rows go to
benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from result_rows import RESULTS, replace_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from funcnet_plugin.bars import bar
from funcnet_plugin.checkpoints.per_layer import enable
from funcnet_plugin.export import export_model

ROWS = RESULTS / "serving.jsonl"
WINDOW, WRITTEN = 128, 32  # tokens
Found = list[dict[str, list]]


def windows_of(checkpoint: Path, text: Path, column: str, count: int) -> list[list[int]]:
    """Cut the first tokens of a text into windows."""
    records = map(json.loads, text.read_text().splitlines())
    joined = "\n\n".join(record[column] for record in records)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(joined[: count * WINDOW * 10], add_special_tokens=False)["input_ids"]
    return [ids[start * WINDOW : (start + 1) * WINDOW] for start in range(count)]


def by_transformers(checkpoint: Path, windows: list[list[int]]) -> Found:
    enable(PreTrainedModel)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = []
    for window in bar(windows, "transformers", "window"):
        ids = torch.tensor([window])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            written = model.generate(
                ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False
            )
        given = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        rows.append({"logprobs": given.tolist(), "written": written[0, WINDOW:].tolist()})
    return rows


def by_llama_cpp(file: Path, windows: list[list[int]], **cache: int) -> Found:
    import llama_cpp

    model = llama_cpp.Llama(
        str(file), n_ctx=WINDOW + WRITTEN, logits_all=True, verbose=False, n_threads=1, **cache
    )
    rows = []
    for window in bar(windows, "llama.cpp", "window"):
        model.reset()
        model.eval(window)
        logprobs = torch.from_numpy(model.scores[: WINDOW - 1].copy()).log_softmax(-1)
        written = []
        for _ in range(WRITTEN):
            written.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(written[-1:])
        given = logprobs.gather(1, torch.tensor(window[1:])[:, None])[:, 0]
        rows.append({"logprobs": given.tolist(), "written": written})
    return rows


def by_vllm(
    python: Path, checkpoint: Path, dtype: str, windows: list[list[int]]
) -> tuple[str, Found]:
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "windows.json", Path(folder) / "found.json"
        given.write_text(json.dumps(windows))
        worker = Path(__file__).parent / "serving_vllm.py"
        subprocess.run([python, worker, checkpoint, dtype, given, found], check=True)
        answer = json.loads(found.read_text())
    return answer["version"], answer["rows"]


def compared(expected: Found, found: Found) -> dict[str, float | int]:
    """Say how far two sets of rows are apart."""
    differences = torch.tensor(
        [
            abs(mine - theirs)
            for one, other in zip(expected, found, strict=True)
            for mine, theirs in zip(one["logprobs"], other["logprobs"], strict=True)
        ]
    )
    return {
        "largest": float(differences.max()),
        "mean": float(differences.mean()),
        "same_text": sum(
            one["written"] == other["written"]
            for one, other in zip(expected, found, strict=True)
        ),
    }  # fmt: skip


def measured(checkpoint: Path, windows: list[list[int]], args: argparse.Namespace) -> Iterator:
    """Give runtime, its version, what it was given, and how far it is from transformers."""
    expected = by_transformers(checkpoint, windows)
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.llama_cpp or ():
            out = Path(folder) / variant
            export_model(checkpoint, out, f"gguf:{variant}")
            for kind, cache in {"f32": {"type_k": 0, "type_v": 0}, "f16": {}}.items():
                found = by_llama_cpp(out / "model.gguf", windows, **cache)
                form = f"gguf:{variant}, {kind} cache"
                yield "llama.cpp", version("llama_cpp_python"), form, compared(expected, found)
        for form in (args.export or ["as it is"]) if args.vllm else ():
            given = checkpoint
            if form != "as it is":
                given = Path(folder) / form
                export_model(checkpoint, given, form)
            which, found = by_vllm(args.vllm, given, args.dtype, windows)
            form += "" if args.dtype == "float32" else f", {args.dtype}"
            yield "vLLM", which, form, compared(expected, found)


def table(rows: Iterable[dict]) -> str:
    """Show rows as Markdown."""
    heads = ("checkpoint", "runtime", "as", "largest difference", "mean", "same text")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (row["checkpoint"], f"{row['runtime']} {row['version']}", row["form"])
        figures = (f"{row['largest']:.1e}", f"{row['mean']:.1e}")
        text = f"{row['same_text']} of {row['windows']}"
        lines.append(f"| {' | '.join((*cells, *figures, text))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", action="append", default=[], metavar="NAME=DIR")
    add("--text", type=Path)
    add("--text-column", default="text")
    add("--windows", type=int, default=64)
    add("--llama-cpp", action="append", metavar="VARIANT")
    add("--vllm", type=Path, metavar="PYTHON")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of vLLM")
    add("--export", action="append", metavar="FORMAT", help="'as it is' gives the checkpoint")
    args = parser.parse_args()
    if args.checkpoint and args.text is None:
        parser.error("--checkpoint needs --text.")
    for given in args.checkpoint:
        name, _, path = given.partition("=")
        windows = windows_of(Path(path), args.text, args.text_column, args.windows)
        for runtime, which, form, figures in measured(Path(path), windows, args):
            about = {"checkpoint": name, "runtime": runtime, "form": form}
            row = about | {"version": which, "windows": len(windows)} | figures
            row["transformers"] = version("transformers")
            replace_rows(ROWS, [row], **about)
    print(table(map(json.loads, ROWS.read_text().splitlines())))


if __name__ == "__main__":
    main()
