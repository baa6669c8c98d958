"""Dense, pruned, quantized, and both in one recipe: size on disk, perplexity, accuracy.

    python benchmarks/prune_and_quantize.py MODEL --data CALIBRATION.jsonl --text TEST.jsonl \\
        --pairs a.jsonl --pairs b.jsonl

Pruning is the packaged recipe with `align` = `--group-size`; quantization is GPTQ, int4 weights in
groups of `--group-size`, lm_head left alone. Scored by lm-eval's `funcnet` model in float32: word
perplexity (lm-eval's, documents from their own beginning in windows of the model's length, weighted
by words) over the first `--limit` documents, and `acc` (the grammatical sentence of a pair is the
likelier one) over the first `--limit` pairs of each file. One table in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import yaml
from llmcompressor import oneshot
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from funcnet_plugin.checkpoints.loading import load_tokenizer
from funcnet_plugin.recipe import load_recipe, override, recipe_path
from funcnet_plugin.tasks import write_local_tasks
from funcnet_plugin.text.sources import load_texts
from funcnet_plugin.text.windows import make_loader, token_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, action="append", default=[])
    parser.add_argument("--column", default="text")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--limit", type=int, default=100)
    args = parser.parse_args()

    fields = {
        "pruning_ratio": args.ratio, "align": args.group_size,
        "scorer.networks.n_components": args.components,
    }  # fmt: skip
    prune = override(load_recipe(recipe_path("ica_prune")), fields)["prune_stage"]
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": args.group_size,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    quantize = {
        "quantization_modifiers": {"GPTQModifier": {"config_groups": groups, "ignore": ["lm_head"]}}
    }
    variants = {"dense": None, "pruned": prune, "GPTQ": quantize, "pruned + GPTQ": prune | quantize}

    tokenizer = load_tokenizer(args.model)
    windows = token_windows(
        load_texts(args.data, args.column), tokenizer,
        window=args.window, samples=args.samples, seed=0,
    )  # fmt: skip
    print("| | MB on disk | parameters | word perplexity | mean acc |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks"
        names = write_local_tasks(tasks, {"text": args.text}, args.pairs, args.column)
        for name, stage in variants.items():
            path = args.model
            if stage is not None:
                path = str(Path(folder) / name.replace(" ", ""))
                oneshot(
                    model=args.model, tokenizer=tokenizer, output_dir=path,
                    recipe=yaml.safe_dump({"bench_stage": stage}, sort_keys=False),
                    dataset=make_loader(windows),
                )  # fmt: skip
            output = simple_evaluate(
                model="funcnet",
                model_args={"pretrained": path, "dtype": "float32"},
                tasks=names, limit=args.limit, batch_size=16,
                task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            )["results"]  # fmt: skip
            size = sum(f.stat().st_size for f in Path(path).glob("*.safetensors")) / 1e6
            accuracies = [output[n]["acc,none"] for n in names[1:]]
            mean = f"{100 * sum(accuracies) / len(accuracies):.1f}" if accuracies else "-"
            kept = stage is not None and "pruning_modifiers" in stage
            print(
                f"| {name} | {size:.2f} | {'-' + format(args.ratio, '.0%') if kept else 'all'} | "
                f"{output['text']['word_perplexity,none']:.1f} | {mean} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
